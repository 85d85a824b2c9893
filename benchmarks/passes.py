"""Milliseconds of each pass of the DiT at the released sizes, on a GPU or a CPU, by eager PyTorch with the K/V ring.

The weights are random: a pass costs the same with any. The window is full. Nothing but the DiT is measured: no
autoencoder, no audio encoder, no transfers. `video_fps` is what the passes alone would allow, 12 frames to a chunk.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lipstream.errors import ConfigError
from lipstream_export.denoiser import RingAttention
from lipstream_training.models import STUDENTS, CausalDiT, KVRing, StudentConfig
from lipstream_training.models.rope import rotate, spatial_angles, temporal_angles, token_angles
from torch import Tensor
from tqdm import trange

from .common import main, parser, positive, spread, write

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Passes:
    """A random student on a device, its ring as full as it gets, standing at a chunk whose passes can be repeated."""

    def __init__(self, config: StudentConfig, device: torch.device, dtype: torch.dtype) -> None:
        with device, _default(dtype):
            torch.manual_seed(0)
            self._student = CausalDiT(config).eval()
            channels, c = config.latent_channels, config.chunk_frames
            self._latent = torch.randn(channels, c, *config.latent_size)
            self._condition = torch.randn(config.in_channels - channels, c, *config.latent_size)
            self._audio = torch.randn(config.temporal * c, config.audio_dim)
            self._text_kv = self._student.text_kv(torch.randn(1, config.text_len, config.text_dim))
            self._times, self._modulations = self._student.time(torch.tensor(config.t_list, dtype=torch.float64))
        self._ring = KVRing(config, dtype=dtype, device=str(device))
        blocks = self._ring.geometry.rolling // c
        for chunk in range(2 * blocks + 2):
            self._ring.begin(chunk)
            frames = torch.arange(c) + chunk * c
            angles = token_angles(
                temporal_angles(frames, config.head_dim), spatial_angles(config.grid, config.head_dim)
            )
            self._cos, self._sin = (x.float().to(device) for x in (angles.cos(), angles.sin()))
            self.run(len(config.t_list) - 1)

    def run(self, step: int) -> None:
        """One pass of the current chunk: `step` counts through the schedule, the last one is the context pass."""

        def write_ring(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return self._ring.write(layer, rotate(k, self._cos[:, :, None], self._sin[:, :, None]), v)

        attend = RingAttention(write_ring, self._cos, self._sin, self._student)
        chunk = self._latent, self._condition, self._audio
        if step < len(self._times) - 1:
            self._student.denoise(*chunk, self._times[step], self._modulations[step], self._text_kv, attend)
        else:
            self._student.context(*chunk, self._modulations[step], self._text_kv, attend, attend.leave)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.inference_mode()
def measure(config: StudentConfig, device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Each pass `repeats` times, chunk after chunk, with the device idle before and after each."""
    passes = Passes(config, device, dtype)
    steps = range(len(config.t_list))
    rows = []
    for _ in trange(repeats, desc="chunks", disable=None):
        row = []
        for step in steps:
            _wait(device)
            start = time.perf_counter()
            passes.run(step)
            _wait(device)
            row.append(1000 * (time.perf_counter() - start))
        rows.append(row)
    table = torch.tensor(rows, dtype=torch.float64)
    names = [*(f"denoise_{step}" for step in steps[:-1]), "context"]
    chunk = spread(table.sum(1).numpy())
    frames = config.temporal * config.chunk_frames
    result: dict[str, Any] = {f"{name}_ms": spread(table[:, i].numpy()) for i, name in enumerate(names)}
    result |= {"chunk_ms": chunk, "video_fps": 1000 * frames / chunk["median"]}
    if device.type == "cuda":
        result |= {"memory_gib": torch.cuda.max_memory_allocated(device) / 2**30, "gpu": _gpu(device)}
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    torch.set_num_threads(args.threads)
    found = measure(STUDENTS[args.size], device, DTYPES[args.dtype], args.repeats)
    times = ", ".join(f"{k.removesuffix('_ms')} {v['median']:.1f} ms" for k, v in found.items() if k.endswith("_ms"))
    print(f"{args.size}, {args.dtype} on {args.device}: {times}; the passes alone allow {found['video_fps']:.1f} fps")
    write(args.json, "passes", args, found)
    return True


def build_parser() -> argparse.ArgumentParser:
    options = parser("passes", __doc__, bundle=False)
    options.add_argument("--size", choices=STUDENTS, default="1.3b", help="of the student (default 1.3b)")
    options.add_argument("--device", default="cuda", help="of PyTorch: cuda (default), cuda:1, cpu")
    options.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default bfloat16")
    options.add_argument("--repeats", type=positive, default=30, help="chunks (default 30)")
    return options


if __name__ == "__main__":
    arguments = build_parser().parse_args()
    if arguments.quick:
        arguments.repeats = 2
    sys.exit(main(run, arguments))
