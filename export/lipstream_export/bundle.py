"""Writes the parts of a student as a bundle: graphs, weights, constants, manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lipstream.bundle import CONSTANTS, AudioGeometry, Bundle, Geometry, Manifest, writing
from lipstream.bundle.manifest import CLIP_ENCODER
from lipstream.errors import ConfigError
from lipstream_models import RingGeometry, SpeechEncoder, StudentConfig, WanVAE
from lipstream_models.mel import SAMPLE_RATE, SAMPLES_PER_FRAME
from lipstream_models.parts import AudioEncoderModel, Codec, StudentParts
from lipstream_models.released.wav2vec import LiveWav2Vec
from lipstream_models.weight_file import PLACES, WEIGHTS
from safetensors.torch import save as safetensors
from torch import nn

from .audio import AudioEncoder, ClipEncoder
from .denoiser import RingPass, dynamic_shapes
from .lower import WeightFile, save, to_onnx
from .progress import Progress, unseen
from .video import VideoDecoder, VideoEncoder


def check_sizes(config: StudentConfig) -> None:
    """Raise `ConfigError` if sizes of the student contradict each other."""
    try:
        RingGeometry(config.window, config.sink, config.chunk_frames)
    except ValueError as error:
        raise ConfigError(str(error), expected="window = sink + a multiple of chunk_frames") from error
    if config.num_heads < 1 or config.dim % (2 * config.num_heads):
        raise ConfigError(f"dim {config.dim} is not a multiple of twice the {config.num_heads} heads")
    if config.sequence not in ("reference", "masked"):
        raise ConfigError(f"sequence {config.sequence!r}", expected="'reference' or 'masked'")
    if any(size % patch for size, patch in zip(config.latent_size, config.patch[1:], strict=True)):
        raise ConfigError(f"latent size {config.latent_size} is not a multiple of the patch {config.patch[1:]}")


def geometry(config: StudentConfig) -> Geometry:
    """The shapes of a stream of this student."""
    return Geometry(
        crop_size=config.crop_size,
        crop_box=config.crop_box,
        latent_size=config.latent_size,
        latent_channels=config.latent_channels,
        spatial=config.spatial,
        temporal=config.temporal,
        sequence=config.sequence,
        chunk_frames=config.chunk_frames,
        window=config.window,
        sink=config.sink,
        tokens=config.tokens,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        num_layers=config.num_layers,
    )


def graph_modules(parts: StudentParts, *, frugal: bool = False) -> dict[str, nn.Module]:
    """The module behind each graph that a bundle of these parts has, by the graph's name.

    Args:
        frugal: the Wan VAE processes a chunk one latent frame at a time. At 512 x 512 in float32 on a CPU, ONNX
            Runtime's encoder then needs 18 GiB instead of more than 23; a GPU in bfloat16 is faster with whole chunks.

    Raises:
        ConfigError: sizes of the student that contradict each other.
    """
    if parts.student:
        check_sizes(parts.config)
    shape = geometry(parts.config)

    def pieces(codec: Codec) -> int:
        return shape.chunk_frames if frugal and isinstance(codec, WanVAE) else 1

    graphs: dict[str, nn.Module] = {}
    if parts.student:
        graphs["denoiser"] = RingPass(parts.student)
    if parts.speech:
        graphs["audio_encoder"] = AudioEncoder(parts.speech, shape.video_frames)
    if encoder := parts.codec("encoder"):
        graphs["video_encoder"] = VideoEncoder(
            encoder, shape.video_frames, shape.crop_size, pieces(encoder), parts.masks.get("pixel")
        )
    if decoder := parts.codec("decoder"):
        graphs["video_decoder"] = VideoDecoder(decoder, shape.chunk_frames, shape.crop_size, pieces(decoder))
    return graphs


def manifest_of(parts: StudentParts, precision: str = "fp32") -> Manifest:
    """The manifest of a bundle of these parts, without files."""
    config = parts.config
    parameters = sum(p.numel() for module in parts.modules().values() for p in module.parameters())
    sizes: dict[str, Any] = {"config": asdict(config)}
    speech: AudioEncoderModel | type[SpeechEncoder] = parts.speech or SpeechEncoder
    if isinstance(speech, LiveWav2Vec):
        sizes["wav2vec"] = speech.sizes()
    elif parts.speech:
        sizes["speech"] = speech.architecture
    if parts.taehv:
        sizes["taehv"] = asdict(parts.taehv.config)
    if parts.wan:
        sizes |= {"wan": asdict(parts.wan.config), "encoder": parts.encoder, "decoder": parts.decoder}
    return Manifest(
        model={"parameters": parameters, **parts.model, **sizes},
        geometry=geometry(config),
        audio=AudioGeometry(SAMPLE_RATE, SAMPLES_PER_FRAME, speech.lookback, speech.lookahead, config.audio_dim),
        t_list=config.t_list,
        precision=precision,
    )


def export_bundle(
    parts: StudentParts,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    files: Mapping[str, bytes] | None = None,
    progress: Progress = unseen,
    check: Callable[[Bundle], None] = lambda bundle: None,
) -> Bundle:
    """Write the bundle to folder `path`, atomically, and open it.

    Args:
        precision: of `parts`. files: further files of the bundle, by name.
        check: called with the finished bundle before it is renamed to `path`; if it raises, `path` stays as it was.

    Raises:
        ConfigError: sizes of the student that contradict each other.
        OutputError: `path` cannot be written, or holds something that is not a bundle.
    """
    graphs = graph_modules(parts, frugal=precision == "fp32")
    if isinstance(parts.speech, LiveWav2Vec) and precision == "fp32":
        graphs[CLIP_ENCODER] = ClipEncoder(parts.speech)
    manifest = manifest_of(parts, precision)
    with writing(path, manifest) as folder:
        with (folder / WEIGHTS).open("wb") as file:
            weights = WeightFile(file)
            for done, (name, module) in enumerate(graphs.items()):
                progress("graphs", done, len(graphs), name)
                dynamic = None
                if isinstance(module, RingPass):
                    dynamic = dynamic_shapes(module, parts.config)
                elif isinstance(module, ClipEncoder):
                    dynamic = module.dynamic()
                with torch.no_grad():
                    model = to_onnx(module, dynamic=dynamic)
                save(model, folder / f"{name}.onnx", weights)
            progress("graphs", len(graphs), len(graphs), "writing the bundle")
            places = {name: weights.place(x) for name, x in parts.weights().items()} if precision == "fp32" else {}
        if places:
            (folder / PLACES).write_text(json.dumps(places, indent=1) + "\n")
        for name, data in (files or {}).items():
            (folder / name).write_bytes(data)
        constants = {name: x.contiguous().float() for name, x in parts.constants().items()}
        (folder / CONSTANTS).write_bytes(safetensors(constants))
        check(Bundle(folder, replace(manifest, files={file.name: {} for file in folder.iterdir()})))
    return Bundle.load(Path(path))
