"""What a session shows where there is no audio, and when a frame counts as speaking."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .reference import SourceFrame

Idle = Literal["closed", "reference"]
"""What a session shows without audio. "closed": the mouth as the model keeps it in silence, at the cost of speech.
"reference": the untouched video, at almost no cost, with a fade from and to speech."""

_GATE = 10 ** (-45 / 20)
_HOLD = 8  # frames after the last sound that still count as speaking
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

    def fade(
        self, spoken: bool, before: float, sources: list[SourceFrame], images: list[NDArray[np.uint8]]
    ) -> list[float]:
        """Blend the sources into `images` of a chunk: at the start of speech after untouched frames, or out of speech.

        Args:
            spoken: False for an idle chunk. before: share of the generated mouth in the frame before the chunk;
                negative for a session's first.

        Returns:
            The share of the generated mouth in each frame.
        """
        shares = [0.0 if source.matrix is None else 1.0 for source in sources]
        if self.mode != "reference":
            return shares
        if spoken:
            start = 1.0 if before < 0 else before
            wanted = [min(1.0, start + (i + 1) / (_FADE + 1)) for i in range(len(images))]
        else:
            wanted = [1 - (i + 1) / len(images) for i in range(len(images))]
        for i, (share, source) in enumerate(zip(wanted, sources, strict=True)):
            if shares[i] and share < 1:
                images[i] = cv2.addWeighted(images[i], share, source.image, 1 - share, 0)  # type: ignore[assignment]
                shares[i] = share
        return shares

    def speaking(self, audio: NDArray[np.float32]) -> bool:
        """Whether the next frame, with this sound, counts as speaking."""
        loud = audio.size > 0 and float(np.sqrt(np.mean(np.square(audio)))) > _GATE
        self._hold = _HOLD if loud else max(0, self._hold - 1)
        return self._hold > 0

    def reset(self) -> None:
        """Speech has ended."""
        self._hold = 0
