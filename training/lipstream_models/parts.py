"""A student with its codec, audio encoder, prompt and masks, and the three forms in which it is stored.

checkpoint  a folder that training writes: `checkpoint.json` (sizes, kinds and a description), `student.safetensors`,
            `taehv.safetensors`, `speech.safetensors`, and `extras.safetensors` with the prompt embedding `text`, the
            masks `mask.pixel`, `mask.latent`, `mask.composite`, and the `identity` of a student for one person
bundle      what `lipstream export` writes: graphs, their weights, and constants in place of the prompt
release     the published files of Lip Forcing
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lipstream.bundle import IDENTITY, REBUILD, Bundle
from lipstream.errors import BackendError, CheckpointError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import StudentConfig, TAEHVConfig, config_from_json
from .constants import FOLDED, stream_constants
from .dit import CausalDiT
from .perceptron import SpeechPerceptron
from .released.masks import load_masks
from .released.release import Release
from .released.student import load_student
from .released.text import load_text
from .released.video import load_taehv, load_wan_vae
from .released.wav2vec import LiveWav2Vec, load_wav2vec
from .speech import SpeechEncoder
from .taehv import TAEHV
from .wan_vae import WanVAE, WanVAEConfig
from .weight_file import PLACES, WEIGHTS, read_weight

DESCRIPTION = "checkpoint.json"
_RETRAIN = "copy the folder again, or train it again: lipstream-train --help"
_TOGETHER = "models that were trained together"
_HALVES = {"encoder": ("encoder.", "conv1."), "decoder": ("decoder.", "conv2.")}
"""Prefixes of the names of each half's weights; conv1 and conv2 are the Wan VAE's."""

AudioEncoderModel = SpeechEncoder | SpeechPerceptron | LiveWav2Vec
"""samples [lookback + 640 n + lookahead] at 16 kHz in [-1, 1] -> features [n, A]."""
Codec = TAEHV | WanVAE


@dataclass
class StudentParts:
    """The models of a student and the tensors that belong to them. A part may be missing; then its graphs are, too.

    Attributes:
        config: sizes of the student, and of the streams of all parts.
        student: the causal DiT. text: its prompt embedding [text_len, text_dim].
        taehv, wan: video autoencoders; `encoder` and `decoder` name the one used for each half, "taehv" or "wan".
        speech: computes the student's audio features.
        masks: float32 `pixel` [H, W] and `latent` [h, w], 1 = keep; `composite` [H, W] in [0, 1], 1 = show the source.
        model: name, description and licence, for the manifest of a bundle.
        shared: `stream_constants`, precomputed; replaces `text`.
        identity: latents [C, 1, h, w] of a frame of the one person whom the student is for; None: the first frame of
            each stream takes this place.
    """

    config: StudentConfig
    student: CausalDiT | None = None
    text: Tensor | None = None
    taehv: TAEHV | None = None
    speech: AudioEncoderModel | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Tensor] | None = None
    wan: WanVAE | None = None
    encoder: str = "taehv"
    decoder: str = "taehv"
    identity: Tensor | None = None

    @classmethod
    def from_checkpoint(cls, folder: Path) -> StudentParts:
        """All parts of a checkpoint folder, checked to fit each other.

        Raises:
            CheckpointError: a file is missing, unreadable or does not fit the others.
        """
        if not (folder / DESCRIPTION).is_file():
            raise CheckpointError(
                f"{folder} is not a checkpoint", expected=f"a folder with {DESCRIPTION}, written by lipstream-train"
            )
        try:
            sizes = json.loads((folder / DESCRIPTION).read_text())
            student = CausalDiT(config_from_json(StudentConfig, sizes["student"]))
            taehv = TAEHV(config_from_json(TAEHVConfig, sizes["taehv"]))
            speech = speech_encoder(sizes.get("speech"))
            for name, module in (("student", student), ("taehv", taehv), ("speech", speech)):
                module.load_state_dict(load_file(folder / f"{name}.safetensors"))
            extras = load_file(folder / "extras.safetensors")
            text, model = extras["text"], sizes["model"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            raise CheckpointError(f"{folder} does not load: {reason}", fix=_RETRAIN) from error
        _check_models(folder, student.config, taehv.config, speech.features)
        _check_extras(folder, student.config, extras)
        for tensors in (student.state_dict(), taehv.state_dict(), speech.state_dict(), extras):
            for name, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise CheckpointError(f"{name} of {folder} holds values that are not finite", fix=_RETRAIN)
        return cls(
            student.config,
            student.eval(),
            text,
            taehv.eval(),
            speech.eval(),
            _masks(extras),
            model,
            identity=extras.get(IDENTITY),
        )

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder.

        Raises:
            ValueError: parts are missing, or of a kind that a checkpoint does not hold.
        """
        speech = self.speech
        if not (self.student and self.taehv and speech and self.text is not None) or isinstance(speech, LiveWav2Vec):
            raise ValueError("a checkpoint holds a student, its prompt, a TAEHV and an encoder of mel spectra")
        folder.mkdir(parents=True, exist_ok=True)
        extras = {"text": self.text} | self._beside()
        save_file(_contiguous(self.student.state_dict()), folder / "student.safetensors")
        save_file(_contiguous(self.taehv.state_dict()), folder / "taehv.safetensors")
        save_file(_contiguous(speech.state_dict()), folder / "speech.safetensors")
        save_file(_contiguous(extras), folder / "extras.safetensors")
        description = {
            "student": asdict(self.config),
            "taehv": asdict(self.taehv.config),
            "speech": speech.architecture,
            "model": self.model,
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> StudentParts:
        """The models behind a bundle's graphs, with the weights and constants of the bundle.

        Weights that act only through the constants, or in no graph, are not in a bundle: they stay as initialised.

        Args:
            bundle: of `lipstream export`, in fp32.

        Raises:
            BackendError: the bundle holds no weights that PyTorch could read.
        """
        if PLACES not in bundle.manifest.files:
            raise BackendError(f"{bundle.path} has no {PLACES}, from which PyTorch gets its weights", fix=REBUILD)
        model, graphs = bundle.manifest.model, bundle.manifest.graphs
        config = config_from_json(StudentConfig, model["config"])
        constants = {name: torch.from_numpy(x) for name, x in bundle.constants.items()}
        speech: AudioEncoderModel | None = None
        if "audio_encoder" in graphs:
            speech = (
                LiveWav2Vec.restore(model["wav2vec"]) if "wav2vec" in model else speech_encoder(model.get("speech"))
            )
        parts = cls(
            config,
            student=CausalDiT(config) if "denoiser" in graphs else None,
            taehv=TAEHV(config_from_json(TAEHVConfig, model["taehv"])) if "taehv" in model else None,
            wan=WanVAE(config_from_json(WanVAEConfig, model["wan"])) if "wan" in model else None,
            speech=speech,
            encoder=model.get("encoder", "taehv"),
            decoder=model.get("decoder", "taehv"),
            masks=_masks(constants),
            shared=_shared(constants),
            identity=constants.get(IDENTITY),
            model=dict(model),
        )
        places = json.loads(bundle.file(PLACES).read_text())
        data = np.memmap(bundle.file(WEIGHTS), np.uint8, "r")
        for part, module in parts.modules().items():
            stored = [name for name in module.state_dict() if f"{part}.{name}" in places]
            weights = {name: read_weight(data, places[f"{part}.{name}"]) for name in stored}
            module.eval().load_state_dict(weights, strict=False)
        return parts

    @classmethod
    def from_release(cls, release: Release, progress: Callable[[str], None] = lambda name: None) -> StudentParts:
        """The parts of a set of published files, the student's matrix products in bfloat16 as published.

        Args:
            progress: called with the name of what is loaded next.

        Raises:
            CheckpointError: files are missing or of another kind.
        """
        release.check()
        config = release.config
        student = load_student(release.student, release.model, progress=progress)
        progress("codecs")
        used = (release.encoder, release.decoder)
        wan = load_wan_vae(release.vae) if release.vae and "wan" in used else None
        taehv = load_taehv(release.taehv) if release.taehv and "taehv" in used else None
        progress("wav2vec 2.0")
        speech = LiveWav2Vec(load_wav2vec(release.wav2vec), lookback=release.lookback, lookahead=release.lookahead)
        if speech.features != config.audio_dim:
            raise CheckpointError(
                f"{release.wav2vec} gives {speech.features} features",
                expected=f"{config.audio_dim}, the student's input",
            )
        return cls(
            config,
            student=student,
            text=load_text(release.text, config.text_len, config.text_dim),
            taehv=taehv,
            wan=wan,
            encoder=release.encoder,
            decoder=release.decoder,
            speech=speech,
            masks=load_masks(release.mask, config),
            model={
                "name": release.model,
                "description": "Lip Forcing, from released files.",
                "licence": "of those files",
            },
        )

    def codec(self, half: str) -> Codec | None:
        """The video autoencoder used for `half`, "encoder" or "decoder"."""
        codecs: dict[str, Codec | None] = {"taehv": self.taehv, "wan": self.wan}
        return codecs[getattr(self, half)]

    def modules(self) -> dict[str, nn.Module]:
        """The models that are present, by the name of their part."""
        found = {"student": self.student, "taehv": self.taehv, "wan": self.wan, "speech": self.speech}
        return {name: module for name, module in found.items() if module is not None}

    def constants(self) -> dict[str, Tensor]:
        """The tensors that all streams share: `mask.*`, `identity` and those of `stream_constants`."""
        constants = self._beside()
        if self.shared is not None:
            return constants | self.shared
        if self.student:
            assert self.text is not None, "a student needs its prompt embedding"
            constants |= stream_constants(self.student, self.text)
        return constants

    def with_constants(self) -> StudentParts:
        """The same parts with their constants computed, so that this happens once."""
        return replace(self, shared=_shared(self.constants()))

    def _beside(self) -> dict[str, Tensor]:
        """Masks and identity, by their names as constants."""
        masks = {f"mask.{name}": mask for name, mask in self.masks.items()}
        return masks if self.identity is None else masks | {IDENTITY: self.identity}

    def weights(self) -> dict[str, Tensor]:
        """The weights that the graphs compute with, by "part.name"."""
        halves = [f"{getattr(self, half)}.{start}" for half, starts in _HALVES.items() for start in starts]
        named = {f"{part}.{name}": x for part, m in self.modules().items() for name, x in m.state_dict().items()}
        return {
            name: x
            for name, x in named.items()
            if not FOLDED.search(name) and (not name.startswith(("taehv.", "wan.")) or name.startswith(tuple(halves)))
        }


def speech_encoder(architecture: str | None) -> SpeechEncoder | SpeechPerceptron:
    """A new audio encoder by its `architecture`; None: what checkpoints and bundles held before they named it.

    Raises:
        ValueError: there is no such encoder.
    """
    for kind in (SpeechEncoder, SpeechPerceptron):
        if kind.architecture == (architecture or SpeechPerceptron.architecture):
            return kind()
    raise ValueError(f"no audio encoder is called {architecture}")


def _check_models(folder: Path, config: StudentConfig, taehv: TAEHVConfig, features: int) -> None:
    """Raise CheckpointError where the models of a checkpoint do not fit each other."""
    if config.latent_channels != taehv.latent_channels:
        raise CheckpointError(
            f"{folder}: the student has {config.latent_channels} latent channels, the TAEHV {taehv.latent_channels}",
            expected=_TOGETHER,
        )
    if config.spatial != taehv.spatial:
        raise CheckpointError(
            f"{folder}: the student's latents are {config.spatial} times smaller, the TAEHV's {taehv.spatial}",
            expected=_TOGETHER,
        )
    if config.audio_dim != features:
        raise CheckpointError(
            f"{folder}: the student takes {config.audio_dim} audio features, its audio encoder gives {features}",
            expected=_TOGETHER,
        )


def _check_extras(folder: Path, config: StudentConfig, extras: dict[str, Tensor]) -> None:
    """Raise CheckpointError where the prompt or a mask is missing or of another shape than the student's sizes give."""
    wanted: dict[str, tuple[int, ...]] = {"text": (config.text_len, config.text_dim), "mask.latent": config.latent_size}
    wanted |= {f"mask.{name}": config.crop_size for name in ("pixel", "composite")}
    if IDENTITY in extras:
        wanted[IDENTITY] = (config.latent_channels, 1, *config.latent_size)
    for name, shape in wanted.items():
        found = tuple(extras[name].shape) if name in extras else "missing"
        if found != shape:
            raise CheckpointError(f"{name} of {folder} is {found}", expected=str(shape), fix=_RETRAIN)


def _shared(constants: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of `stream_constants`."""
    return {name: x for name, x in constants.items() if name != IDENTITY and not name.startswith("mask.")}


def _masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("mask."): x for name, x in tensors.items() if name.startswith("mask.")}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().contiguous() for name, x in tensors.items()}
