"""What is asked of `lipstream-train prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lipstream.errors import ConfigError
from lipstream_models import STUDENTS
from lipstream_models.config import StudentConfig

FRAMES = 81
"""Frames of a clip: 21 latent frames, as upstream trained its students."""


@dataclass(frozen=True)
class Filters:
    """What a clip must have; each of them is the reason of a drop where it lacks it. 0 turns one off.

    Attributes:
        face: least height of the face in pixels of the source. jump: most that the face's box may move from frame to
            frame, in sizes of the face; more is a cut, or too fast to be sharp.
        sharpness: least variance of the Laplacian of the face at 128 pixels (luma, 0 to 255).
        others: area of another face over that of the followed one, from which on there is more than one speaker.
        loudness: least peak of the loudness (root mean square of a frame's samples).
        speech: least share of frames that are louder than a tenth of that peak.
        mouth: least standard deviation of the lip gap over the clip, in eye distances.
        offset: most frames by which SyncNet may find the mouth early or late. confidence: least Sync-C.
    """

    face: float = 80.0
    jump: float = 0.25
    sharpness: float = 12.0
    others: float = 0.35
    loudness: float = 0.01
    speech: float = 0.2
    mouth: float = 0.004
    offset: float = 1
    confidence: float = 0.0


@dataclass(frozen=True)
class Released:
    """Published files whose models compute latents and features."""

    vae: Path
    wav2vec: Path
    text: Path
    mask: Path


@dataclass(frozen=True)
class Settings:
    """What goes into the shards, and how.

    Attributes:
        student: a name of `STUDENTS`, whose inputs the crops are.
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
        """How crops are stored: small ones as they are, others as H.264 at crf 13, like upstream's data."""
        return "npy" if self.size <= 128 else "mp4"
