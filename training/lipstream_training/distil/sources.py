"""Inputs of a run: clips of prepared shards, and initial weights of earlier stages, checkpoints or published files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from lipstream.errors import CheckpointError, ConfigError
from lipstream_models import STUDENTS, CausalDiT, StudentConfig
from lipstream_models.condition import assemble_condition, fill_first_latent_frame
from lipstream_models.parts import StudentParts
from lipstream_models.released import load_student, load_taehv
from lipstream_models.released.student import LORA_SCALE, Adapters, load_unmerged
from lipstream_models.released.text import load_text
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..prepare.shards import Shards, load_constants
from .recipe import FirstLatent
from .rollout import Batch

WEIGHTS = "student.safetensors"
"""A stage's result, adapters merged."""
LAST = "last.safetensors"
"""Of a run with a moving average the weights without it; `WEIGHTS` has the average."""
ADAPTER = "adapter.safetensors"
"""The adapters that are merged into it, and what was trained beside them; names and scale of a released delta."""
_A = ".lora_A.default.weight"
_CONSTANTS = {"text": "prompt", "mask": "mask"}


class ShardClips:
    """Clips of folders of `lipstream-train prepare` with latents and features in them.

    Attributes:
        sizes: clips of each folder; clips are numbered through, folder by folder.
        text: the prompt's embedding, float32 [text_len, text_dim].

    Args:
        frames: latent frames of each clip that are used, its first; 0: all.
        first_latent: whose first latent frame the condition repeats for all frames.

    Raises:
        ConfigError: no shards, or shards without latents, or of other sizes than the student's; folders with different
            prompts or masks; `frames` is more than a clip has, or not a whole number of chunks.
    """

    def __init__(
        self,
        folders: Path | Sequence[Path],
        config: StudentConfig,
        frames: int = 0,
        first_latent: FirstLatent = "reference",
    ) -> None:
        folders = [folders] if isinstance(folders, Path) else list(folders)
        constants = [load_constants(folder) for folder in folders]
        self._config, self.text, self._mask = config, constants[0]["text"], constants[0]["mask"]
        for folder, other in zip(folders, constants, strict=True):
            for name, x in constants[0].items():
                if not torch.equal(x, other[name]):
                    raise ConfigError(
                        f"{folder} and {folders[0]} do not fit each other: another {_CONSTANTS[name]}",
                        fix="prepare both with the same --encode, or --vae, --wav2vec, --text and --mask",
                    )
        self._shards, self._first = Shards(folders), first_latent
        self.sizes = self._shards.sizes
        held = min(self._check(folder, first) for folder, first in zip(folders, self._firsts(), strict=True))
        c = config.chunk_frames
        self._frames = frames or held
        if self._frames > held or self._frames % c:
            raise ConfigError(f"frames {self._frames}", expected=f"a multiple of {c} up to {held}, which a clip has")

    def _firsts(self) -> list[dict[str, NDArray[Any]]]:
        """The first clip of each folder."""
        return [self._shards.tensors(start) for start in list(accumulate(self.sizes, initial=0))[:-1]]

    def _check(self, folder: Path, first: dict[str, NDArray[Any]]) -> int:
        """Check a folder by its first clip; returns the latent frames of a clip."""
        config = self._config
        if "target" not in first:
            raise ConfigError(
                f"{folder} holds no latents", fix="prepare it with --encode, or --vae, --wav2vec, --text and --mask"
            )
        wanted = (config.latent_channels, *config.latent_size)
        found = (first["target"].shape[0], *first["target"].shape[2:])
        if found != wanted or first["audio"].shape[1] != config.audio_dim:
            raise ConfigError(
                f"{folder} holds latents {found} and {first['audio'].shape[1]} audio features",
                expected=f"{wanted} and {config.audio_dim}, as the student has",
            )
        return int(first["target"].shape[1])

    def __len__(self) -> int:
        return len(self._shards)

    def batch(self, clips: tuple[int, ...]) -> Batch:
        samples = [self._shards.tensors(clip) for clip in clips]

        def stack(name: str) -> Tensor:
            return torch.stack([torch.from_numpy(sample[name]).float() for sample in samples])

        target, masked = (stack(name)[:, :, : self._frames] for name in ("target", "masked"))
        audio = stack("audio")[:, : self._config.temporal * (self._frames - 1) + 1]
        sequence = masked if self._config.sequence == "masked" else stack("reference")[:, :, : self._frames]
        if self._first == "target":
            first = target[:, :, :1]
        else:
            first = stack("first") if self._config.sequence == "masked" else sequence[:, :, :1]
        condition = assemble_condition(first, self._mask, masked, sequence)
        return Batch(target, condition, fill_first_latent_frame(audio, self._config.temporal), clips)


def load_model(files: Sequence[Path], student: str, *, new_audio: bool = False) -> CausalDiT:
    """A model in float32, from a folder or file of a stage, or from released files (`lipstream export --student`).

    Args:
        new_audio: a base model without audio layers gets new ones, which add nothing yet.

    Raises:
        CheckpointError: they do not hold such a model.
    """
    if ours := _of_a_stage(files):
        return _merged(ours, student)
    return load_student(list(files), student, new_audio=new_audio).float()


def load_unmerged_model(files: Sequence[Path], student: str, *, new_audio: bool = False) -> tuple[CausalDiT, Adapters]:
    """As `load_model`, with its adapters apart; there are none in files without them.

    A stage writes its weights with the adapters merged: they are subtracted again, exactly but for rounding to float32.

    Args:
        new_audio: a base model without audio layers gets new ones, which add nothing yet.
    """
    if not (ours := _of_a_stage(files)):
        model, adapters = load_unmerged(list(files), student, new_audio=new_audio)
        return model.float(), adapters
    model = _merged(ours, student)
    path = ours.with_name(ADAPTER)
    if ours.name == LAST or not path.is_file():  # the adapters are those of the moving average
        return model, {}
    try:
        held = load_file(path)
        layers = [name.removesuffix(_A) for name in held if name.endswith(_A)]
        adapters = {layer: (held[layer + _A], held[layer + _A.replace("A", "B")]) for layer in layers}
        with torch.no_grad():
            for layer, (a, b) in adapters.items():
                model.get_parameter(f"{layer}.weight").sub_(LORA_SCALE * (b @ a))
    except (AttributeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no adapter of {ours}: {str(error).splitlines()[0]}") from error
    return model, adapters


def _of_a_stage(files: Sequence[Path]) -> Path | None:
    """The weights that a stage wrote, if `files` are these."""
    path = files[0] / WEIGHTS if files[0].is_dir() else files[0]
    return path if len(files) == 1 and path.name in (WEIGHTS, LAST) and path.is_file() else None


def _merged(path: Path, student: str) -> CausalDiT:
    model = CausalDiT(STUDENTS[student])
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no {student}: {str(error).splitlines()[0]}") from error
    return model


def open_decoder(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Latents [B, C, F, h, w] -> video [B, 4 F - 3, 3, H, W] in [0, 1].

    Args:
        path: published weights of TAEHV, or a checkpoint folder of `lipstream-train`.

    Raises:
        CheckpointError: `path` holds neither.
    """
    codec = StudentParts.from_checkpoint(path).taehv if path.is_dir() else load_taehv(path)
    assert codec, "every checkpoint has a codec"
    codec.to(device)

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        x = latents.transpose(1, 2)
        spatial = codec.config.spatial
        memory = codec.decoder_memory(len(x), spatial * x.shape[3], spatial * x.shape[4])
        return codec.decode(x, memory)[0][:, 3:].clamp(0, 1)

    return decode


def prompt(path: Path | None, config: StudentConfig) -> Tensor:
    """The embedding of a file; zeros without one, as upstream's negative prompt."""
    if path is None:
        return torch.zeros(config.text_len, config.text_dim)
    return load_text(path, config.text_len, config.text_dim).float()
