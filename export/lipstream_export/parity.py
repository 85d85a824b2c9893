"""Compares a bundle on ONNX Runtime with PyTorch and the weights the bundle was exported from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from lipstream.backends.base import Array
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.bundle import Bundle
from lipstream.bundle.golden import relative_error
from lipstream.bundle.manifest import CLIP_ENCODER
from lipstream.errors import ParityError
from lipstream_models.parts import StudentParts

from .progress import Progress, unseen
from .torch_backend import TorchBackend

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-4, "fp8": 1e-2}
"""For FP8: if the last bit of an input differs, E4M3 may round it to another neighbour, 6 % away."""

_CLIP, _CLIP_FRAMES = 31_000, 50  # samples, not whole frames; the last frame has no sound


def parity_report(
    parts: StudentParts, bundle: Bundle, precision: str = "fp32", *, seed: int = 0, progress: Progress = unseen
) -> dict[str, Any]:
    """Run both on the same random inputs, until the ring is full, has moved the sink and has wrapped.

    Both run as streams with all their state, but every call gets new inputs, so that errors do not add up.
    For a `precision` below float32, both compute in float32 with its rounded weights (`precision.widen`).
    The context pass's result is the ring, which the first velocity of the next chunk depends on.

    Returns:
        What `<bundle>.parity.json` holds: `graphs` is the worst relative error of each graph's output (norm of the
        difference over norm of PyTorch's, in float64), `worst` the worst of them, to be at most `tolerance`.
    """
    manifest = bundle.manifest
    geometry, audio = manifest.geometry, manifest.audio
    c, channels, n = geometry.chunk_frames, geometry.latent_channels, geometry.video_frames
    chunks = (geometry.window - geometry.sink) // c + -(-geometry.sink // c) + 2
    progress("parity", 0, chunks, "loading the graphs")
    backends = TorchBackend(parts), OnnxRuntimeBackend(bundle)
    streams = [backend.open_steps() for backend in backends]
    errors: dict[str, list[float]] = {}
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    def compare(graph: str, call: str, *arguments: object) -> None:
        expected, found = (getattr(stream, call)(*arguments) for stream in streams)
        errors.setdefault(graph, []).append(relative_error(found, expected))

    if manifest.encodes_clips:
        samples = 0.1 * normal(_CLIP)
        expected, found = (encode(samples, _CLIP_FRAMES) for backend in backends if (encode := backend.encode_clip))
        errors[CLIP_ENCODER] = [relative_error(found, expected)]
    for chunk in range(chunks):
        progress("parity", chunk, chunks, f"chunk {chunk}")
        if "audio_encoder.onnx" in manifest.files:
            samples = 0.1 * normal(audio.window(n))
            compare("audio_encoder", "encode_audio", samples)
        if "video_encoder.onnx" in manifest.files:
            frames = rng.random((n, 3, *geometry.crop_size), np.float32)
            compare("video_encoder", "encode_video", frames)
        if "denoiser.onnx" in manifest.files:
            condition, features = normal(3 * channels + 1, c, *geometry.latent_size), normal(n, audio.features)
            for stream in streams:
                stream.begin_chunk(chunk)
            for step in range(len(manifest.t_list) - 1):
                compare("denoiser", "denoise", normal(channels, c, *geometry.latent_size), condition, features, step)
            latent = normal(channels, c, *geometry.latent_size)
            for stream in streams:
                stream.context(latent, condition, features)
        if "video_decoder.onnx" in manifest.files:
            compare("video_decoder", "decode", normal(channels, c, *geometry.latent_size))

    worst_of = {graph: float(np.max(found)) for graph, found in errors.items()}
    worst, tolerance = float(np.max(list(worst_of.values()))), TOLERANCE[precision]
    return {
        "backends": ["torch", "onnxruntime"],
        "precision": precision,
        "tolerance": tolerance,
        "passed": worst <= tolerance,
        "worst": worst,
        "graphs": worst_of,
        "chunks": chunks,
        "seed": seed,
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }


def require_parity(report: dict[str, Any]) -> None:
    """Raise `ParityError`, which names the worst graph, if an error in the report exceeds the tolerance."""
    if not report["passed"]:
        graph = max(report["graphs"], key=lambda name: np.nan_to_num(report["graphs"][name], nan=np.inf))
        raise ParityError(
            f"ONNX Runtime and PyTorch disagree on graph {graph}: relative error {report['graphs'][graph]:.1e}",
            expected=f"at most {report['tolerance']:.0e} in {report['precision']}",
            fix="pip install --upgrade torch onnx onnxscript onnxruntime, and export again",
        )
