"""Whether the mouth of a tracked face can be repainted: not while something covers it, and not on a flat drawing."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..media.picture import Image

Doubt = Literal["covered", "flat"]
"""Why a generated mouth cannot be right: something else is in its place, or the face is drawn in flat colours."""

_CELLS = 8  # a side of the grid whose mean colours are compared
_CHANGED = 25.0  # mean absolute difference in 0..255 from which a cell shows something else
_COVERED = 0.35  # share of changed cells; a talking mouth changes up to a ninth of them
_ADAPTATION = 0.1  # share of a new frame in the remembered colours
_LONGEST = 250  # frames after which what covers the mouth is taken for its new look
_LEVEL = 1  # steps between neighbouring pixels that count as none
_FLAT = 0.5  # share of pixels without steps; photographs and shaded drawings have up to 0.2, flat ones 0.8


class MouthWatch:
    """Judges the crops of one face in a row, which show the mouth and what is around it.

    A crop is compared with the colours that it had in the frames before, except for a change of brightness as a whole.
    What covers the mouth from the first frame on is not noticed. Thresholds were set on pictures over which hands and
    microphones were drawn, on turned and shaded faces, and on cartoons.
    """

    def __init__(self) -> None:
        self._colours: NDArray[np.float32] | None = None
        self._scene = -1
        self._covered = 0

    def __call__(self, crop: Image, scene: int) -> Doubt | None:
        """Judge the next crop, uint8 [S, S, 3]; in another `scene` than before, nothing is compared."""
        cells = np.asarray(cv2.resize(crop, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA), np.float32)
        if self._colours is None or scene != self._scene or self._covered > _LONGEST:
            self._colours, self._scene, self._covered = cells, scene, 0
        gain = np.median(cells, axis=(0, 1)) / np.maximum(np.median(self._colours, axis=(0, 1)), 1)
        changed = np.abs(cells - self._colours * np.clip(gain, 0.5, 2)).mean(axis=2) > _CHANGED
        if changed.mean() > _COVERED:
            self._covered += 1
            return "covered"
        self._covered = 0
        self._colours += np.float32(_ADAPTATION) * (cells - self._colours)
        return "flat" if _flatness(crop) > _FLAT else None


def _flatness(crop: Image) -> float:
    """Share of pixels that are as their right and lower neighbours."""
    here = crop[:-1, :-1]
    step = cv2.max(cv2.absdiff(crop[1:, :-1], here), cv2.absdiff(crop[:-1, 1:], here))
    return float(np.mean(cv2.inRange(step, (0, 0, 0), (_LEVEL,) * 3) > 0))
