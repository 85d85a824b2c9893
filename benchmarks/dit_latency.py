"""Milliseconds of each pass of the DiT at the released sizes, on a GPU or a CPU, by eager PyTorch in two structures.

ring      without optimisation: the K/V ring, SDPA, one type for all
upstream  as in the released code: the window's K and V concatenated and rotated in float64 in every layer of every pass
          (benchmarks/upstream.py)

The weights are random: the time of a pass does not depend on them. The window is full. Only the DiT is measured: no
autoencoder, no audio encoder, no transfers. `video_fps` is the frame rate that the passes alone allow, 12 frames per
chunk. On a GPU times are those between events of the device. The machine's ceilings are measured in the same run, and
if results/roofline.json has the student's counts, each pass's bound is given as a share of its time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lipstream.errors import ConfigError
from lipstream_export.denoiser import RingAttention
from lipstream_models import STUDENTS, CausalDiT, KVRing, StudentConfig
from lipstream_models.rope import rotate, spatial_angles, temporal_angles, token_angles
from torch import Tensor
from tqdm import trange

from .common import main, parser, positive, spread, write
from .device_peaks import Ceiling, measured, seconds
from .roofline import recorded_bound
from .upstream import WindowCache

STRUCTURES = ("ring", "upstream")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Passes:
    """A random student on a device with a full window, at a chunk whose passes can be repeated."""

    def __init__(self, config: StudentConfig, device: torch.device, dtype: torch.dtype, structure: str) -> None:
        self._config, self._device = config, device
        with device, _default(dtype):
            torch.manual_seed(0)
            self._student = CausalDiT(config).eval()
            channels, c = config.latent_channels, config.chunk_frames
            self._latent = torch.randn(channels, c, *config.latent_size)
            self._condition = torch.randn(config.in_channels - channels, c, *config.latent_size)
            self._audio = torch.randn(config.temporal * c, config.audio_dim)
            text_kv = self._student.text_kv(torch.randn(1, config.text_len, config.text_dim))
            self._text_kv = [(k.transpose(1, 2), v.transpose(1, 2)) for k, v in text_kv]
            times = self._student.time(torch.tensor(config.t_list, dtype=torch.float64))
            self._modulations = self._student.modulation(*times)
        self._ring = KVRing(config, dtype=dtype, device=str(device))
        self._window = WindowCache(config, device) if structure == "upstream" else None
        blocks = self._ring.geometry.rolling // c
        for chunk in range(2 * blocks + 2):
            self._ring.begin(chunk)
            frames = torch.arange(c) + chunk * c
            angles = token_angles(
                temporal_angles(frames, config.head_dim), spatial_angles(config.grid, config.head_dim)
            )
            self._cos, self._sin = (x.float().to(device) for x in (angles.cos(), angles.sin()))
            self.run(len(config.t_list) - 1)

    def run(self, step: int) -> Tensor | None:
        """One pass of the current chunk: `step` counts through the schedule, the last one is the context pass.

        The context pass of the structure "upstream" begins its cache's next chunk; the cost of that is the same.
        """
        chunk = self._latent, self._condition, self._audio
        modulation = self._modulations[step]
        attend = self._window or self._over_ring()
        if step < len(self._modulations) - 1:
            return self._student.denoise(*chunk, modulation, self._text_kv, attend)
        if isinstance(attend, WindowCache):
            self._student.context(*chunk, modulation, self._text_kv, attend.context, attend.leave)
        else:
            self._student.context(*chunk, modulation, self._text_kv, attend, attend.leave)
        return None

    def _over_ring(self) -> RingAttention:
        def write_ring(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return self._ring.write(layer, rotate(k, self._cos[:, :, None], self._sin[:, :, None]), v)

        return RingAttention(write_ring, self._cos, self._sin, self._student)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.inference_mode()
def measure(
    config: StudentConfig, device: torch.device, dtype: torch.dtype, structure: str, repeats: int
) -> dict[str, Any]:
    """Each pass `repeats` times, chunk after chunk, with the device idle before and after each."""
    passes = Passes(config, device, dtype, structure)
    steps = range(len(config.t_list))
    rows = []
    for _ in trange(repeats, desc=f"{structure}, chunks", disable=None):
        rows.append([1000 * seconds(partial(passes.run, step), device) for step in steps])
    table = torch.tensor(rows, dtype=torch.float64)
    names = [*(f"denoise_{step}" for step in steps[:-1]), "context"]
    chunk = spread(table.sum(1).numpy())
    frames = config.temporal * config.chunk_frames
    result: dict[str, Any] = {f"{name}_ms": spread(table[:, i].numpy()) for i, name in enumerate(names)}
    result |= {"chunk_ms": chunk, "video_fps": 1000 * frames / chunk["median"]}
    if device.type == "cuda":
        result |= {"memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    return result


def shares(found: dict[str, Any], size: str, precision: str, ceiling: Ceiling, window: int) -> dict[str, float]:
    """Each pass's bound as a share of its time; empty if its graph was not counted."""
    least = recorded_bound(size, precision, "denoiser", window, ceiling)
    if least is None:
        return {}
    return {
        key: 1000 * least / found[key]["median"]
        for key in ("denoise_0_ms", "denoise_1_ms", "context_ms")
        if key in found
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def run(args: argparse.Namespace) -> bool:
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device that PyTorch can use", fix="run it on a machine with a GPU, or --device cpu")
    config = STUDENTS[args.size]
    args.dtype = args.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    ceiling, figures = measured(device, args.threads)
    results: dict[str, Any] = {"ceilings": figures, "structures": {}}
    if device.type == "cuda":
        results["gpu"] = _gpu(device)
    precision = {"bfloat16": "bf16", "float32": "fp32"}[args.dtype]
    for structure in args.structures:
        found = measure(config, device, DTYPES[args.dtype], structure, args.repeats)
        found["of_bound"] = shares(found, args.size, precision, ceiling, config.window)
        results["structures"][structure] = found
        times = ", ".join(
            f"{k.removesuffix('_ms')} {v['median']:.1f} ms" for k, v in found.items() if k.endswith("_ms")
        )
        share = ", ".join(f"{x:.0%}" for x in found["of_bound"].values())
        print(
            f"{args.size}, {structure}, {args.dtype} on {args.device}: {times}; "
            f"the passes alone allow {found['video_fps']:.1f} fps{f'; {share} of their bound' if share else ''}",
            flush=True,
        )
    write(args.json, "dit_latency", args, results)
    return True


def build_parser() -> argparse.ArgumentParser:
    options = parser("dit_latency", __doc__, bundle=False, least={"repeats": 2})
    options.add_argument("--size", choices=STUDENTS, default="1.3b", help="of the student (default 1.3b)")
    options.add_argument("--device", default="cuda", help="of PyTorch: cuda (default), cuda:1, cpu")
    options.add_argument("--dtype", choices=DTYPES, help="default bfloat16, on a CPU float32")
    options.add_argument("--structures", nargs="+", choices=STRUCTURES, default=[*STRUCTURES], help="default: both")
    options.add_argument("--repeats", type=positive, default=30, help="chunks (default 30)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
