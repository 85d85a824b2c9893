"""What a session shows where there is no audio, and when a frame counts as speaking."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Idle = Literal["closed", "reference"]
"""What a session shows without audio. "closed": the mouth as the model keeps it in silence, at the cost of speech.
"reference": the untouched video, at almost no cost, with a fade from and to speech."""

_GATE = 10 ** (-45 / 20)  # RMS of a frame above which it has sound: -45 dB of full scale
_HOLD = 8  # frames that count as speaking from the last one with sound on, that one included
_FADE = 5  # frames in which the generated mouth fades in


class IdlePolicy:
    """Raises ConfigError for a mode that does not exist; None: no idle frames."""

    def __init__(self, mode: Idle | None) -> None:
        if mode not in (None, *get_args(Idle)):
            raise ConfigError(f"idle={mode!r}", expected=" or ".join(map(repr, get_args(Idle))))
        self.mode = mode
        self._hold = 0

    def is_reference(self, share: float) -> bool:
        """Whether an idle frame is the untouched video; `share` of the generated mouth is in the frame before it."""
        return self.mode == "reference" and share <= 0

    def shares(self, spoken: bool, before: float, frames: int) -> list[float]:
        """Share of the generated mouth in each frame of a chunk, 0 to 1: a fade after untouched frames, or into them.

        Args:
            spoken: False for an idle chunk. before: share in the frame before the chunk; negative for a session's
                first. frames: of the chunk.
        """
        if self.mode != "reference":
            return [1.0] * frames
        if not spoken:
            return [1 - (i + 1) / frames for i in range(frames)]
        start = 1.0 if before < 0 else before
        return [min(1.0, start + (i + 1) / (_FADE + 1)) for i in range(frames)]

    def speaking(self, audio: NDArray[np.float32]) -> bool:
        """Whether the next frame, with this sound, counts as speaking."""
        loud = audio.size > 0 and float(np.sqrt(np.mean(np.square(audio)))) > _GATE
        self._hold = _HOLD if loud else max(0, self._hold - 1)
        return self._hold > 0

    def reset(self) -> None:
        """Speech has ended."""
        self._hold = 0
