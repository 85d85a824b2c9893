#!/usr/bin/env python3
"""Compare LipStream with recorded inputs and outputs of the upstream implementation.

    python tests/golden.py FILE... [--backend torch|onnxruntime] [--json]

Each file is a safetensors file with weights, inputs and outputs, and a JSON object in its metadata key `golden` that
names its kind and sizes. The weights go through the product's own path: for `onnxruntime` they are exported to a bundle
and run by the SDK's backend, chunk by chunk, ring and all. Exit status 1 if any file disagrees.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.backends.sampler import assemble_condition, generate_chunk
from lipstream.backends.steps import Steps
from lipstream.face.alignment import Aligner
from lipstream_export.bundle import export_bundle
from lipstream_export.lower import to_onnx
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import TAEHV, CausalDiT, StudentConfig, TAEHVConfig, WanVAE, WanVAEConfig
from lipstream_models.parts import StudentParts
from lipstream_models.released.wav2vec import Wav2VecFeatures, wav2vec
from numpy.typing import NDArray
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent))
import golden_pipeline

Array = NDArray[np.float32]
TOLERANCE = 1e-4


class Golden:
    """One file: `config` (the metadata), `inputs`, `outputs` and `weights` as float32 (or float64) tensors by name."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["golden"])
            tensors = {name: _exact(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.weights, self.outputs = under("weights/"), under("out/")
        self.inputs: dict[str, Any] = {name: x.numpy() for name, x in under("in/").items()}

    def error(self, name: str, found: Array) -> float:
        """Relative error of an output: norm of the difference over norm of the golden tensor."""
        expected = self.outputs.pop(name).numpy().astype(np.float64)
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _exact(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def open_stream(parts: StudentParts, backend: str) -> Steps:
    if backend == "torch":
        return TorchBackend(parts).open_steps()
    with tempfile.TemporaryDirectory() as folder:
        return OnnxRuntimeBackend(export_bundle(parts, Path(folder) / "bundle")).open_steps()


def dit_stream(golden: Golden, backend: str) -> float:
    """Every velocity and clean latent of a stream of chunks."""
    c, x = golden.config, golden.inputs
    weights = golden.weights
    channels = c["out_dim"]
    config = StudentConfig(
        dim=c["dim"],
        ffn_dim=c["ffn_dim"],
        num_heads=c["num_heads"],
        num_layers=c["num_layers"],
        window=c["window"],
        sink=c["sink"],
        chunk_frames=c["chunk"],
        latent_size=tuple(c["latent_hw"]),
        latent_channels=channels,
        patch=tuple(c["patch"]),
        freq_dim=weights["time_embedding.0.weight"].shape[1],
        text_dim=weights["text_embedding.0.weight"].shape[1],
        text_len=c["text_len"],
        audio_dim=weights["audio_proj.proj.weight"].shape[1] // 4,
        audio_hidden=weights["audio_proj.proj.weight"].shape[0],
        t_list=tuple(c["t"]),
    )
    student = CausalDiT(config)
    student.load_state_dict(weights)
    rows = torch.from_numpy(x["text_emb"][0])
    text = torch.zeros(config.text_len, config.text_dim)
    text[: rows.shape[0]] = rows
    stream = open_stream(StudentParts(config, student, text), backend)

    features = x["audio_emb"][0]
    features = np.concatenate([np.repeat(features[:1], 3, axis=0), features])
    reference = x["ref_sequence"][0][:, :1]
    worst = 0.0
    for chunk in range(c["frames"] // config.chunk_frames):
        frames = slice(chunk * config.chunk_frames, (chunk + 1) * config.chunk_frames)
        masked, sequence = x["masked_video"][0][:, frames], x["ref_sequence"][0][:, frames]
        condition = assemble_condition(reference, x["latent_mask"], masked, sequence)
        audio = features[4 * frames.start : 4 * frames.stop]
        noises = [x["noise"][0][:, frames]]
        noises += [x[name][0] for name in (f"renoise.{chunk}", f"renoise.{chunk}.1", f"renoise.{chunk}.2") if name in x]
        stream.begin_chunk(chunk)

        def compare(step: int, velocity: Array, chunk: int = chunk) -> None:
            nonlocal worst
            name = f"v_{round(config.t_list[step] * 1000):04d}.{chunk}"
            worst = max(worst, golden.error(name, velocity[None]))

        x0 = generate_chunk(stream, config.t_list, noises, condition, audio, on_velocity=compare)
        worst = max(worst, golden.error(f"x0.{chunk}", x0[None]))
        stream.context(x0, condition, audio)
    return worst


def taehv(golden: Golden, backend: str) -> float:
    """The decoder from latents and the encoder from video, streamed three latent frames a call."""
    weights = golden.weights
    growth = {i: weights[f"decoder.{i}.weight"].shape for i in (8, 14, 20)}
    model = TAEHV(
        TAEHVConfig(
            encoder_width=weights["encoder.0.weight"].shape[0],
            decoder_widths=(growth[8][1], growth[14][1], growth[20][1], growth[20][0]),
            latent_channels=weights["decoder.1.weight"].shape[1],
        )
    )
    model.load_state_dict(weights)
    worst = 0.0
    if "latent" in golden.inputs:
        latent = golden.inputs["latent"][0]
        stream = open_stream(_video_parts(model, latent.shape[2], latent.shape[3]), backend)
        chunks = _chunks(latent, 3)
        frames = np.concatenate([stream.decode(chunk.swapaxes(0, 1).copy()) for chunk in chunks])
        worst = golden.error("decoded", frames[None, 3 : 4 * len(latent)])
    if "video" in golden.inputs:
        video = golden.inputs["video"][0]
        stream = open_stream(_video_parts(model, video.shape[2] // 8, video.shape[3] // 8), backend)
        latents = np.concatenate([stream.encode_video(chunk).swapaxes(1, 2) for chunk in _chunks(video, 12)], axis=1)
        worst = max(worst, golden.error("encoded", latents[:1, : len(video) // 4]))
    return worst


def wan_vae(golden: Golden, backend: str) -> float:
    """Video to latents and back: the clip in one call (torch), and streamed three latent frames a call.

    The stream encodes a batch of two, of which the second has nothing masked.
    """
    model = WanVAE(WanVAEConfig.of(golden.weights)).eval()
    model.load_state_dict(golden.weights)
    video = (golden.inputs["video"][0].swapaxes(0, 1) + 1) / 2  # [T, 3, H, W] in [0, 1]
    latents, decoded = golden.outputs["latent"].clone(), golden.outputs["decoded"].clone()
    height, width = video.shape[2:]
    frames = np.concatenate([np.repeat(video[:1], 3, axis=0), video])  # the first one stands for four
    worst = 0.0
    if backend == "torch":
        clip = torch.from_numpy(frames)[None]
        found, _ = model.encode(clip, model.encoder_memory(1, height, width))
        worst = golden.error("latent", found.transpose(1, 2).numpy())
        back, _ = model.decode(latents.transpose(1, 2), model.decoder_memory(1, height, width), clamp=False)
        worst = max(worst, golden.error("decoded", 2 * back[:, 3:].transpose(1, 2).numpy() - 1))
    golden.outputs |= {"latent": latents, "decoded": decoded.clamp(-1, 1)}
    stream = open_stream(_video_parts(model, height // 8, width // 8), backend)
    encoded = np.concatenate([stream.encode_video(chunk) for chunk in _chunks(frames, 12)], axis=2)
    count = latents.shape[2]
    worst = max(worst, golden.error("latent", encoded[:1, :, :count]))
    golden.outputs["latent"] = latents
    worst = max(worst, golden.error("latent", encoded[1:, :, :count]))
    chunks = _chunks(latents[0].transpose(0, 1).numpy(), 3)
    pictures = np.concatenate([stream.decode(np.ascontiguousarray(chunk.swapaxes(0, 1))) for chunk in chunks])
    return max(worst, golden.error("decoded", 2 * pictures[None, 3 : 4 * count].swapaxes(1, 2) - 1))


def wav2vec_features(golden: Golden, backend: str) -> float:
    """The features of a whole waveform."""
    c, waveform = golden.config, golden.inputs["waveform"]
    features = Wav2VecFeatures(wav2vec(c["config"], golden.weights), len(waveform), c["frames"]).eval()
    if backend == "torch":
        found = features(torch.from_numpy(waveform)).numpy()
    else:
        model = to_onnx(features)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"waveform": waveform})
    return golden.error("features", found[None, : c["frames"]])


def face_affine(golden: Golden, backend: str) -> float:
    """The transforms of consecutive frames; the SDK's own numpy code, on either backend."""
    aligner = Aligner()
    solved = [(aligner.solve(points), aligner.bias) for points in golden.inputs["landmarks3"]]
    matrices, biases = zip(*solved, strict=True)
    errors = [golden.error("matrix", np.stack(matrices))]
    if "bias" in golden.outputs:
        errors.append(golden.error("bias", np.stack(biases)))
    return max(errors)


def _video_parts(model: TAEHV | WanVAE, height: int, width: int) -> StudentParts:
    config = StudentConfig(
        dim=8,
        ffn_dim=8,
        num_heads=1,
        num_layers=1,
        latent_size=(height, width),
        latent_channels=model.config.latent_channels,
    )
    masks = {"pixel": torch.ones(8 * height, 8 * width)}
    if isinstance(model, WanVAE):
        return StudentParts(config, wan=model, encoder="wan", decoder="wan", masks=masks)
    return StudentParts(config, taehv=model, masks=masks)


def _chunks(x: Array, length: int) -> list[Array]:
    """`x` cut into pieces of `length`; the last is filled up with zeros, which earlier output cannot see."""
    missing = -len(x) % length
    x = np.concatenate([x, np.zeros((missing, *x.shape[1:]), np.float32)])
    return np.split(x, len(x) // length)


KINDS: dict[str, Callable[[Golden, str], float]] = {
    "dit_stream": dit_stream,
    "face_affine": face_affine,
    "pipeline": golden_pipeline.pipeline,
    "taehv": taehv,
    "wan_vae": wan_vae,
    "wav2vec_features": wav2vec_features,
}
TOLERANCES = {"face_affine": 1e-6, "pipeline": golden_pipeline.TOLERANCE}


def check(path: Path, backend: str) -> dict[str, Any]:
    """One file -> its result: name, kind, worst relative error, passed."""
    golden = Golden(path)
    kind = golden.config["kind"]
    if kind not in KINDS:
        return {
            "name": path.stem,
            "kind": kind,
            "rel": None,
            "passed": False,
            "note": f"unknown kind; known: {', '.join(KINDS)}",
        }
    note = ""
    with torch.no_grad():
        try:
            error = KINDS[kind](golden, backend)
        except AssertionError as found:
            error, note = float("inf"), str(found)
    left = ", ".join(golden.outputs)
    result = {
        "name": path.stem,
        "kind": kind,
        "rel": error,
        "passed": error <= TOLERANCES.get(kind, TOLERANCE) and not left,
    }
    note = note or (f"not compared: {left}" if left else "")
    return result | ({"note": note} if note else {})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch")
    parser.add_argument("--json", action="store_true", help="print one JSON list in place of the lines")
    args = parser.parse_args(argv)
    results = []
    for path in args.files:
        result = check(path, args.backend)
        results.append(result)
        if not args.json:
            rel = "none" if result["rel"] is None else f"{result['rel']:.2e}"
            verdict = "PASS" if result["passed"] else "FAIL"
            print(
                f"{result['name']} {result['kind']} rel={rel} {verdict} {result.get('note', '')}".rstrip(), flush=True
            )
    if args.json:
        print(json.dumps(results, indent=2))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
