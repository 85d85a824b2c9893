"""Errors of BF16 and FP8: the student in lower precision against itself in float32, on a real job.

A session dubs the sample (or --video with --audio) with every variant, from the same noise. Columns: the relative error
of the velocities of each pass and of the K and V that a chunk stores, all on the float32 model's inputs, pass by pass;
and the PSNR of the decoded mouth region (where the crop is generated) of the whole dub, in which errors accumulate
through the ring. Variants run in PyTorch; "ONNX Runtime" runs the exported FP8 graphs with their quantise-dequantise
pairs.

Then a small model with the released channels and head size and random weights, on noise; all of its layers are
quantised.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lipstream import LipSyncEngine, samples
from lipstream.backends.base import Backend
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.backends.stepped import SteppedStream
from lipstream.backends.steps import Steps
from lipstream.bundle import Bundle
from lipstream.media import AudioReader
from lipstream_export.bundle import export_bundle
from lipstream_export.precision import Passes, measure_sensitivity, quantise, record_passes, to_bfloat16, widen_bundle
from lipstream_export.precision.calibration import largest_inputs, largest_operands
from lipstream_export.precision.fp8 import LARGEST, to_e4m3
from lipstream_export.precision.sensitivity import BUDGET, velocity_error
from lipstream_export.torch_backend import TorchBackend, TorchSteps
from lipstream_models import CausalDiT, StudentConfig
from lipstream_models.parts import StudentParts
from lipstream_models.ring import KVRing
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .common import main, parser, positive, write

Frames = NDArray[np.float32]
WANTED = 40.0
"""dB of the mouth in FP8, as shipped, against float32."""


class StoredRing(KVRing):
    """A ring that holds E4M3: K and V rounded when a chunk writes them.

    Args:
        grain: what a scale covers: "head" (measured, fixed), or "token" (one per token and head, computed when
            written).
        largest: per layer the largest K and V, per head, for the fixed scales; [2, H].
    """

    grain = "token"
    largest: list[Tensor]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rounded = []
        for x, fixed in zip((k, v), self.largest[layer], strict=True):
            amax = x.float().abs().amax(-1, keepdim=True) if self.grain == "token" else fixed[None, None, :, None]
            scale = (amax / LARGEST).clamp_min(1e-12)
            rounded.append((to_e4m3(x, scale).float() * scale).to(x.dtype))
        return super().write(layer, *rounded)


class Variant(TorchBackend):
    """A torch backend whose streams store their rings in another format."""

    ring: tuple[str, list[Tensor]] | None = None

    def open_steps(self) -> TorchSteps:
        stream = super().open_steps()
        if self.ring:
            stored = StoredRing(self.parts.config, dtype=stream._ring.k[0].dtype)
            stored.grain, stored.largest = self.ring
            stream._ring = stored
        return stream


def backend(parts: StudentParts, ring: tuple[str, list[Tensor]] | None = None) -> Variant:
    found = Variant(parts)
    found.ring = ring
    return found


def dub(bundle: Bundle, backend: Backend, video: Path, audio: Path, chunks: int) -> Frames:
    """The decoded crops [n, 3, H, W] of the first `chunks` chunks."""
    decoded: list[Frames] = []

    class Watching:
        def __init__(self, stream: Steps) -> None:
            self._stream = stream

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

        def decode(self, latent: Frames) -> Frames:
            decoded.append(self._stream.decode(latent))
            return decoded[-1]

    class Opened:
        def open_stream(self) -> SteppedStream:
            m, steps = bundle.manifest, cast(Steps, Watching(backend.open_steps()))
            return SteppedStream(steps, m.t_list, m.geometry.sequence, bundle.constants["mask.latent"])

    engine = LipSyncEngine(bundle, Opened())  # type: ignore[arg-type]
    sound = AudioReader(audio)
    with engine.session(video) as session:
        for samples in sound:
            session.push_audio(samples, sound.info.rate)
            for _ in session:
                if len(decoded) >= chunks:
                    return np.concatenate(decoded[:chunks])
    return np.concatenate(decoded)


def mouth_psnr(found: Frames, expected: Frames, kept: NDArray[np.float32]) -> float:
    """dB inside the region that is generated (`kept` 0)."""
    error = float(np.mean((found - expected)[..., kept == 0].astype(np.float64) ** 2))
    return 10 * math.log10(1 / error) if error else math.inf


def rings(backend: Variant, passes: Passes) -> list[Frames]:
    """The K and V that every chunk's context pass stores in the middle layer."""
    stream = backend.open_steps()
    left: list[Frames] = []
    for name, arguments in passes.calls:
        getattr(stream, name)(*arguments)
        if name == "context":
            ring, layer = stream._ring, backend.parts.config.num_layers // 2
            slots = slice(ring.position.slot, ring.position.slot + backend.parts.config.chunk_frames)
            left += [ring.k[layer][slots].float().numpy().copy(), ring.v[layer][slots].float().numpy().copy()]
    return left


def largest_heads(parts: StudentParts, passes: Passes) -> list[Tensor]:
    """Per layer the largest K and V of every head, [2, H]."""
    watched = backend(parts)
    stream = watched.open_steps()
    found = [torch.zeros(2, watched.parts.config.num_heads) for _ in range(watched.parts.config.num_layers)]
    for name, arguments in passes.calls:
        getattr(stream, name)(*arguments)
        for layer, (k, v) in enumerate(zip(stream._ring.k, stream._ring.v, strict=True)):
            found[layer] = torch.maximum(found[layer], torch.stack([x.float().abs().amax((0, 1, 3)) for x in (k, v)]))
    return found


def _rounded_residual(parts: StudentParts) -> StudentParts:
    student = copy.deepcopy(parts.student)
    assert student
    for block in student.layers:
        block.register_forward_hook(lambda module, inputs, output: output.bfloat16().float())
    return replace(parts, student=student)


def _wholly(parts: StudentParts) -> StudentParts:
    assert parts.student
    shared = {name: x.bfloat16() for name, x in parts.constants().items() if not name.startswith("mask.")}
    return replace(to_bfloat16(parts), student=copy.deepcopy(parts.student).to(torch.bfloat16), shared=shared)


def variants(
    parts: StudentParts, passes: Passes, progress: Callable[[str], None]
) -> Iterator[tuple[str, Variant, str]]:
    """(name, backend, note)"""
    bf16 = to_bfloat16(parts)
    assert bf16.student
    largest = largest_inputs(bf16, passes)
    sensitivity = measure_sensitivity(
        bf16, passes, largest, progress=lambda stage, done, total, step="": progress(f"{stage}, {done} of {total}")
    )
    cut = largest_inputs(bf16, passes, "percentile")
    shipped = replace(bf16, student=quantise(bf16.student, sensitivity.quantised))
    operands = largest_operands(bf16, passes)
    heads = largest_heads(bf16, passes)
    yield "bf16", backend(bf16), "products in bf16, all else float32: what is exported"
    yield "bf16, residual too", backend(_rounded_residual(bf16)), "and the residual rounded after every block"
    yield (
        "bf16 throughout",
        backend(_wholly(parts)),
        "norms, modulation and residual too, as the released model",
    )
    yield "fp8", backend(shipped), f"budget {BUDGET}: {len(sensitivity.kept)} of {len(largest)} layers stay in bf16"
    for name, reach in (("fp8, all layers", largest), ("fp8, all layers, percentile", cut)):
        yield name, backend(replace(bf16, student=quantise(bf16.student, reach))), f"all {len(largest)} layers"
    attention = replace(bf16, student=quantise(bf16.student, sensitivity.quantised, operands))
    yield "fp8 and its attention", backend(attention), "Q, K, V per tensor; softmax not rounded"
    yield "bf16, fp8 ring, head", backend(bf16, ("head", heads)), "one measured scale a head"
    yield "bf16, fp8 ring, token", backend(bf16, ("token", heads)), "one scale a token and head, when written"


def errors_of(found: Backend, passes: Passes, t_list: tuple[float, ...]) -> dict[str, float]:
    """Relative error of the velocities of each pass of the schedule."""
    velocities = found.open_steps()
    given = passes.play(velocities)
    steps = [arguments[3] for name, arguments in passes.calls if name == "denoise"]
    errors = {}
    for step, t in enumerate(t_list[:-1]):
        chosen = [i for i, s in enumerate(steps) if s == step]
        errors[f"velocity at {t}"] = velocity_error([given[i] for i in chosen], [passes.velocities[i] for i in chosen])
    return errors


def random_rows(chunks: int = 5) -> list[dict[str, Any]]:
    """The same errors on a model of the golden vectors' size with random weights."""
    config = StudentConfig(dim=256, ffn_dim=640, num_heads=2, num_layers=6, latent_size=(8, 8), text_dim=64, text_len=8)
    torch.manual_seed(0)
    parts = StudentParts(config, CausalDiT(config).eval().requires_grad_(False), torch.randn(8, 64))
    rng = np.random.default_rng(0)
    passes = Passes()
    shape = config.chunk_frames, *config.latent_size
    for chunk in range(chunks):
        inputs = rng.standard_normal((49, *shape), np.float32), rng.standard_normal((12, config.audio_dim), np.float32)
        latents = rng.standard_normal((3, 16, *shape), np.float32)
        passes.calls += [("begin_chunk", (chunk,)), *(("denoise", (latents[i], *inputs, i)) for i in range(2))]
        passes.calls += [("context", (latents[2], *inputs))]
    passes.velocities = passes.play(backend(parts).open_steps())
    bf16 = to_bfloat16(parts)
    assert bf16.student
    fp8 = replace(bf16, student=quantise(bf16.student, largest_inputs(bf16, passes)))
    found: dict[str, Backend] = {"random, bf16": backend(bf16), "random, fp8, all layers": backend(fp8)}
    with tempfile.TemporaryDirectory() as folder:
        narrow = export_bundle(fp8, Path(folder) / "fp8", precision="fp8")
        found["random, fp8, ONNX Runtime"] = OnnxRuntimeBackend(widen_bundle(narrow, Path(folder) / "wide"))
        return [{"variant": name, **errors_of(b, passes, config.t_list)} for name, b in found.items()]


def run(args: argparse.Namespace) -> bool:
    torch.set_num_threads(args.threads)
    bundle = Bundle.load(args.bundle)
    parts = StudentParts.from_bundle(bundle)
    kept = bundle.constants["mask.pixel"]
    chunks = 2 if args.quick else args.chunks
    passes = record_passes(parts, 2 if args.quick else args.calibrate, video=args.video, audio=args.audio)
    exact = backend(parts)
    expected, left = dub(bundle, exact, args.video, args.audio, chunks), rings(exact, passes)
    rows: list[dict[str, Any]] = []

    def row(name: str, found: Backend, note: str) -> None:
        errors = errors_of(found, passes, parts.config.t_list)
        if isinstance(found, Variant):
            errors["K and V left at 0"] = velocity_error(rings(found, passes), left)
        psnr = mouth_psnr(dub(bundle, found, args.video, args.audio, chunks), expected, kept)
        rows.append({"variant": name, **errors, "mouth_psnr_db": psnr, "note": note})

    with tqdm(total=11, desc="precision", unit="variant", disable=None) as bar:
        for name, found, note in variants(parts, passes, bar.set_postfix_str):
            bar.set_postfix_str(name)
            row(name, found, note)
            bar.update()
        bf16 = to_bfloat16(parts)
        assert bf16.student
        sensitivity = measure_sensitivity(bf16, passes, largest_inputs(bf16, passes))
        shipped = replace(bf16, student=quantise(bf16.student, sensitivity.quantised))
        with tempfile.TemporaryDirectory() as folder:
            narrow = export_bundle(shipped, Path(folder) / "fp8", precision="fp8")
            wide = widen_bundle(narrow, Path(folder) / "wide")
            row("fp8, ONNX Runtime", OnnxRuntimeBackend(wide), "the exported graphs, between the products float32")
        bar.update()
    seconds = chunks * bundle.manifest.geometry.video_frames / 25
    print(f"{args.bundle}: {seconds:.1f} s dubbed, errors over {len(passes.velocities)} velocities")
    rows += random_rows()
    for r in rows:
        errors = "  ".join(f"{r.get(key, math.nan):.4f}" for key in rows[0] if key.startswith(("velocity", "K and")))
        print(f"  {r['variant']:28} {errors}  {r.get('mouth_psnr_db', math.nan):5.1f} dB  {r.get('note', '')}")
    good = all(r["mouth_psnr_db"] >= WANTED for r in rows if r["variant"] in ("fp8", "fp8, ONNX Runtime"))
    print(f"FP8 as exported: at least {WANTED:.0f} dB wanted: {'held' if good else 'missed'}")
    results = {"rows": rows, "sensitivity": sensitivity.report(), "seconds": seconds}
    write(args.json, "precision", args, results)
    return good or args.quick


def build_parser() -> argparse.ArgumentParser:
    options = parser("precision", __doc__)
    options.add_argument("--chunks", type=positive, default=21, help="chunks dubbed (default 21: 10 s)")
    options.add_argument("--calibrate", type=positive, default=6, help="chunks that FP8 is calibrated on (default 6)")
    options.add_argument("--video", type=Path, default=samples.FACE)
    options.add_argument("--audio", type=Path, default=samples.SPEECH)
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
