"""A set of released files -> the parts of a bundle; and what can be said of the set from headers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipstream.errors import CheckpointError
from lipstream_models import STUDENTS, StudentConfig
from lipstream_models.released.files import identify, open_weights
from lipstream_models.released.masks import load_masks
from lipstream_models.released.student import load_student
from lipstream_models.released.text import load_text
from lipstream_models.released.video import load_taehv, load_wan_vae
from lipstream_models.released.wav2vec import LiveWav2Vec, load_wav2vec

from .bundle import Parts
from .settings import LOOKAHEAD, LOOKBACK

_KINDS = {
    "student": ("Lip Forcing student", "Wan 2.1 base model", "training delta or adapter"),
    "vae": ("Wan VAE",),
    "taehv": ("TAEHV",),
    "text": ("text embedding",),
}


@dataclass(frozen=True)
class Release:
    """The files.

    Attributes:
        model: "1.3b" or "14b". student: the merged student, or a base model and what goes on top, in that order.
        wav2vec: folder. text: the prompt's embedding. mask: the mask picture.
        vae: the Wan VAE. taehv: the small decoder. At least one; each half is done by the one named: `encoder`
            ("wan" as the released system, or "taehv") and `decoder` ("taehv" as released, or "wan").
        lookback, lookahead: seconds of sound that a stream hears around each chunk.
    """

    model: str
    student: tuple[Path, ...]
    wav2vec: Path
    text: Path
    mask: Path
    vae: Path | None = None
    taehv: Path | None = None
    encoder: str = "wan"
    decoder: str = "taehv"
    lookback: float = LOOKBACK
    lookahead: float = LOOKAHEAD

    @property
    def config(self) -> StudentConfig:
        return STUDENTS[self.model]

    def check(self) -> dict[str, Any]:
        """Look at headers: per file its kind. Raises one CheckpointError that lists all that is missing or wrong."""
        wrong: list[str] = []
        found: dict[str, Any] = {}
        files = [("student", path) for path in self.student]
        files += [(role, path) for role in ("vae", "taehv", "text") if (path := getattr(self, role))]
        for role, path in files:
            try:
                weights = open_weights(path, shapes_only=True)
            except CheckpointError as error:
                wrong.append(error.found)
                continue
            kind = identify(weights)
            found[str(path)] = str(kind)
            if kind.name not in _KINDS[role]:
                wrong.append(f"{path} looks like: {kind}, not like the {role}")
            elif kind.name == "Lip Forcing student" and weights["patch_embedding.weight"].shape[0] != self.config.dim:
                wrong.append(f"{path} looks like: {kind}, not like the {self.model} student")
        for half, codec in (("encoder", self.encoder), ("decoder", self.decoder)):
            if getattr(self, {"wan": "vae", "taehv": "taehv"}[codec]) is None:
                wrong.append(f"no file for the {half}: {codec}")
        if not (self.wav2vec / "config.json").is_file():
            wrong.append(f"{self.wav2vec} holds no config.json: no wav2vec 2.0")
        if not self.mask.is_file():
            wrong.append(f"no mask: {self.mask}")
        if wrong:
            raise CheckpointError("\n  ".join(["the set of files is not complete:", *wrong]), expected="one of each")
        return found

    def parts(self, progress: Callable[[str], None] = lambda name: None) -> Parts:
        """Load everything. Raises CheckpointError."""
        self.check()
        config = self.config
        student = load_student(self.student, self.model, progress=progress)
        progress("codecs")
        wan = load_wan_vae(self.vae) if self.vae and "wan" in (self.encoder, self.decoder) else None
        taehv = load_taehv(self.taehv) if self.taehv and "taehv" in (self.encoder, self.decoder) else None
        progress("wav2vec 2.0")
        ear = LiveWav2Vec(load_wav2vec(self.wav2vec), lookback=self.lookback, lookahead=self.lookahead)
        if ear.features != config.audio_dim:
            raise CheckpointError(
                f"{self.wav2vec} gives {ear.features} features", expected=f"{config.audio_dim}, which the student hears"
            )
        return Parts(
            student=student,
            text=load_text(self.text, config.text_len, config.text_dim),
            taehv=taehv,
            wan=wan,
            encoder=self.encoder,
            decoder=self.decoder,
            speech=ear,
            masks=load_masks(self.mask, config),
            model={"name": self.model, "description": "Lip Forcing, from released files.", "licence": "of those files"},
        )
