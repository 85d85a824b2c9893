"""Settings of `lipstream-train prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lipstream.errors import ConfigError
from lipstream_models import STUDENTS
from lipstream_models.config import StudentConfig

from .filters import Filters

FRAMES = 81
"""Frames of a clip: 21 latent frames, as upstream trained its students."""


@dataclass(frozen=True)
class Released:
    """Published files whose models compute latents and features."""

    vae: Path
    wav2vec: Path
    text: Path
    mask: Path


@dataclass(frozen=True)
class Settings:
    """Contents of the shards.

    Attributes:
        student: a name of `STUDENTS`; it gives the size of the crops.
        syncnet: weights for the sync filter, "drawn", or None: not checked.
        encode: the codec and the audio encoder that compute latents and features beside the pictures: a checkpoint of
            `lipstream-train`, or published files; None: pictures only.
        shard: clips in a shard. seed: of drawn clips.
    """

    student: str = "1.3b"
    syncnet: str | None = None
    encode: Path | Released | None = None
    shard: int = 64
    seed: int = 0
    filters: Filters = field(default_factory=Filters)

    def __post_init__(self) -> None:
        if self.student not in STUDENTS:
            raise ConfigError(f"student {self.student!r}", expected=", ".join(STUDENTS))
        if self.shard < 1:
            raise ConfigError(f"{self.shard} clips in a shard", expected="1 or more")

    @property
    def config(self) -> StudentConfig:
        return STUDENTS[self.student]

    @property
    def size(self) -> int:
        """Pixels of a crop."""
        return self.config.crop_size[0]

    @property
    def kind(self) -> str:
        """How crops are stored: small ones without loss, others as H.264 at crf 13, as upstream's data."""
        return "npy" if self.size <= 128 else "mp4"
