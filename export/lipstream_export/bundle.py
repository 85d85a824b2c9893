"""A student and what belongs to it -> a bundle: graphs, constants, manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lipstream.bundle import CONSTANTS, AudioGeometry, Bundle, Geometry, Manifest, writing
from lipstream.errors import ConfigError
from lipstream_models import TAEHV, CausalDiT, RingGeometry, SpeechEncoder, StudentConfig, WanVAE
from lipstream_models.mel import SAMPLE_RATE, SAMPLES_PER_FRAME
from lipstream_models.released.wav2vec import LiveWav2Vec
from safetensors.torch import save as safetensors
from torch import Tensor, nn

from .audio import AudioEncoder, Ear
from .denoiser import FOLDED, RingPass, dynamic_shapes, stream_constants
from .lower import PLACES, WEIGHTS, WeightFile, save, to_onnx
from .video import Codec, VideoDecoder, VideoEncoder

_HALVES = {"encoder": ("encoder.", "conv1."), "decoder": ("decoder.", "conv2.")}
"""How the names of a half's weights begin; conv1 and conv2 are the Wan VAE's."""


@dataclass
class Parts:
    """What a bundle is made of. A part left out leaves its graphs out.

    Attributes:
        student: the causal DiT; text: its prompt embedding [text_len, text_dim]. shared: instead of the text, the
            constants that were computed from it (of an exported bundle).
        taehv, wan: video autoencoders; `encoder` and `decoder` name the one that does each half.
        speech: what turns sound into the student's audio features.
        masks: float32 `pixel` [H, W] (1 = keep), `latent` [h, w] (1 = keep), `composite` [H, W] in [0, 1].
        model: name, description, licence: goes into the manifest.
    """

    student: CausalDiT | None = None
    text: Tensor | None = None
    taehv: TAEHV | None = None
    speech: Ear | None = None
    masks: dict[str, Tensor] | None = None
    model: dict[str, Any] | None = None
    shared: dict[str, Tensor] | None = None
    wan: WanVAE | None = None
    encoder: str = "taehv"
    decoder: str = "taehv"

    def codec(self, half: str) -> Codec | None:
        """The video autoencoder that does `half`, "encoder" or "decoder"."""
        codecs: dict[str, Codec | None] = {"taehv": self.taehv, "wan": self.wan}
        return codecs[getattr(self, half)]

    def modules(self) -> dict[str, nn.Module]:
        """The models that there are, by the name of their part."""
        found = {"student": self.student, "taehv": self.taehv, "wan": self.wan, "speech": self.speech}
        return {name: module for name, module in found.items() if module is not None}

    def constants(self) -> dict[str, Tensor]:
        """The tensors that all streams share."""
        constants = {f"mask.{name}": mask for name, mask in (self.masks or {}).items()}
        if self.shared is not None:
            return constants | self.shared
        if self.student:
            assert self.text is not None, "a student needs its prompt embedding"
            constants |= stream_constants(self.student, self.text)
        return constants

    def with_constants(self) -> Parts:
        """The same parts with their constants computed, so that they are computed once."""
        shared = {name: x for name, x in self.constants().items() if not name.startswith("mask.")}
        return replace(self, shared=shared)

    def weights(self) -> dict[str, Tensor]:
        """The weights that the graphs compute with, by the name of their part and their own."""
        halves = [f"{getattr(self, half)}.{start}" for half, starts in _HALVES.items() for start in starts]
        named = {f"{part}.{name}": x for part, m in self.modules().items() for name, x in m.state_dict().items()}
        return {
            name: x
            for name, x in named.items()
            if not FOLDED.search(name) and (not name.startswith(("taehv.", "wan.")) or name.startswith(tuple(halves)))
        }


def student_config(fields: dict[str, Any]) -> StudentConfig:
    """The config that `dataclasses.asdict` took apart, after a way through JSON."""
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return StudentConfig(**sizes)


def check_sizes(config: StudentConfig) -> None:
    """Raise `ConfigError` where sizes of the student do not go together."""
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
    """The shapes a stream of this student has."""
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


def graph_modules(parts: Parts, config: StudentConfig, *, frugal: bool = False) -> dict[str, nn.Module]:
    """The module behind each graph that a bundle of these parts has, by the graph's name.

    Args:
        frugal: the Wan VAE takes a chunk a latent frame at a time. At 512 x 512 ONNX Runtime's encoder takes 18 GiB so,
            in float32 on a CPU, and more than 23 with a chunk at once; a GPU in bfloat16 is faster at once.

    Raises:
        ConfigError: sizes of the student that do not go together.
    """
    if parts.student:
        check_sizes(config)
    shape = geometry(config)

    def pieces(codec: Codec) -> int:
        return shape.chunk_frames if frugal and isinstance(codec, WanVAE) else 1

    graphs: dict[str, nn.Module] = {}
    if parts.student:
        graphs |= {"denoiser": RingPass(parts.student), "context": RingPass(parts.student, context=True)}
    if parts.speech:
        graphs["audio_encoder"] = AudioEncoder(parts.speech, shape.video_frames)
    if encoder := parts.codec("encoder"):
        graphs["video_encoder"] = VideoEncoder(encoder, shape.video_frames, shape.crop_size, pieces(encoder))
    if decoder := parts.codec("decoder"):
        graphs["video_decoder"] = VideoDecoder(decoder, shape.chunk_frames, shape.crop_size, pieces(decoder))
    return graphs


def manifest_of(parts: Parts, config: StudentConfig, precision: str = "fp32") -> Manifest:
    """The manifest of a bundle of these parts, before it has files."""
    parameters = sum(p.numel() for module in parts.modules().values() for p in module.parameters())
    sizes: dict[str, Any] = {"config": asdict(config)}
    ear: Ear | type[SpeechEncoder] = parts.speech or SpeechEncoder
    if isinstance(ear, LiveWav2Vec):
        sizes["wav2vec"] = ear.sizes()
    if parts.taehv:
        sizes["taehv"] = asdict(parts.taehv.config)
    if parts.wan:
        sizes |= {"wan": asdict(parts.wan.config), "encoder": parts.encoder, "decoder": parts.decoder}
    return Manifest(
        model={"parameters": parameters, **(parts.model or {}), **sizes},
        geometry=geometry(config),
        audio=AudioGeometry(SAMPLE_RATE, SAMPLES_PER_FRAME, ear.lookback, ear.lookahead, config.audio_dim),
        t_list=config.t_list,
        precision=precision,
    )


def export_bundle(
    parts: Parts,
    config: StudentConfig,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    files: Mapping[str, bytes] | None = None,
    progress: Callable[[str], None] = lambda graph: None,
    check: Callable[[Bundle], None] = lambda bundle: None,
) -> Bundle:
    """Write the bundle to folder `path`, atomically, and open it.

    Args:
        precision: that `parts` are in. files: more that belongs into the bundle, by name.
        progress: called with each graph's name before it is traced.
        check: called with the finished bundle before it takes the name `path`; what it raises leaves nothing there.

    Raises:
        ConfigError: sizes of the student that do not go together.
        OutputError: the place cannot be written, or holds something that is not a bundle.
    """
    graphs = graph_modules(parts, config, frugal=precision == "fp32")
    manifest = manifest_of(parts, config, precision)
    with writing(path, manifest) as folder:
        with (folder / WEIGHTS).open("wb") as file:
            weights = WeightFile(file)
            for name, module in graphs.items():
                progress(name)
                dynamic = dynamic_shapes(module, config) if isinstance(module, RingPass) else None
                with torch.no_grad():
                    model = to_onnx(module, dynamic=dynamic)
                save(model, folder / f"{name}.onnx", weights)
            places = {name: weights.place(x) for name, x in parts.weights().items()} if precision == "fp32" else {}
        if places:
            (folder / PLACES).write_text(json.dumps(places, indent=1) + "\n")
        for name, data in (files or {}).items():
            (folder / name).write_bytes(data)
        constants = {name: x.contiguous().float() for name, x in parts.constants().items()}
        (folder / CONSTANTS).write_bytes(safetensors(constants))
        check(Bundle(folder, replace(manifest, files={file.name: {} for file in folder.iterdir()})))
    return Bundle.load(Path(path))
