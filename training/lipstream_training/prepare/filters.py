"""The limits of the filters: one definition for `prepare` and for the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _limit(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Filters:
    """What a clip must have; a clip that fails one of them is dropped with its name as the reason. 0 turns one off.

    The help texts describe the fields. A larger `jump` is a cut, or too fast to be sharp. `loudness` is the root mean
    square of a frame's samples; `speech` counts frames louder than a tenth of the loudest.
    """

    face: float = _limit(80.0, "least height of the face, pixels of the source")
    jump: float = _limit(0.25, "most that a face may move from frame to frame, in its own heights")
    sharpness: float = _limit(12.0, "least variance of the Laplacian of the face at 128 pixels, 0 to 255")
    others: float = _limit(0.35, "least area of another face, relative to the speaker's, that counts as a second one")
    loudness: float = _limit(0.01, "least peak of the loudness, 0 to 1")
    speech: float = _limit(0.2, "least share of frames with sound")
    mouth: float = _limit(0.004, "least standard deviation of the lip gap, in eye distances")
    offset: float = _limit(1, "most frames by which the mouth may be early or late")
    confidence: float = _limit(0.0, "least Sync-C")
