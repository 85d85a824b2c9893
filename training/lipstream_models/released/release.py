"""A set of released files, and a check of the set that reads only headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipstream.errors import CheckpointError

from .. import STUDENTS, StudentConfig
from .files import identify, open_weights

_KINDS = {
    "student": ("Lip Forcing student", "Wan 2.1 base model", "training delta or adapter"),
    "vae": ("Wan VAE",),
    "taehv": ("TAEHV",),
    "text": ("text embedding",),
}


@dataclass(frozen=True)
class Release:
    """Paths of the files and how they are used.

    Attributes:
        model: "1.3b" or "14b". student: the merged student, or a base model and its delta or adapter, in that order.
        wav2vec: folder. text: the prompt's embedding. mask: the mask picture.
        vae: the Wan VAE. taehv: the small decoder. At least one of the two; `encoder` ("wan" as upstream, or "taehv")
            and `decoder` ("taehv" as upstream, or "wan") name the one used for each half.
        lookback, lookahead: seconds of audio before and after each chunk that its features are computed from.
    """

    model: str
    student: tuple[Path, ...]
    wav2vec: Path
    text: Path
    mask: Path
    lookback: float
    lookahead: float
    vae: Path | None = None
    taehv: Path | None = None
    encoder: str = "wan"
    decoder: str = "taehv"

    @property
    def config(self) -> StudentConfig:
        return STUDENTS[self.model]

    def check(self) -> dict[str, Any]:
        """Read the headers; returns the kind of each file by its path.

        Raises:
            CheckpointError: one error that lists all that is missing or wrong.
        """
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
