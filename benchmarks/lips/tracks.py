"""The lips in every frame of a video by FaceMesh, independently of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from lipstream.face import FaceTracker, lip_gap
from lipstream.media import Picture
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Frames = NDArray[np.uint8]
Track = NDArray[np.float64]

_EYES = (33, 263)  # FaceMesh: outer corners
_CORNERS = (61, 291)  # of the mouth
_OUTER = (0, 17)  # upper edge of the upper lip, firster edge of the firster lip
_BESIDE, _ABOVE = 0.15, 0.3  # margins of the area around the lips, in widths of the mouth


@dataclass(frozen=True)
class Lips:
    """The lips in n frames; NaN where no face was found.

    Attributes:
        gap: between the lips, and width: of the mouth, in distances of the outer eye corners, float64 [n].
        areas: around the lips, x0, y0, x1, y1 in pixels, float64 [n, 4].
        matrices: frame to alignment canvas, smoothed as in a session, float64 [n, 2, 3].
    """

    gap: Track
    width: Track
    areas: Track
    matrices: Track

    def __getitem__(self, frames: Sequence[int]) -> Lips:
        order = list(frames)
        return Lips(self.gap[order], self.width[order], self.areas[order], self.matrices[order])

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Where a face was found, bool [n]."""
        return ~np.isnan(self.gap)


def track_lips(frames: Iterable[Picture | Image]) -> Lips:
    """Follow the largest face through the frames of a video, pictures or uint8 [H, W, 3] RGB."""
    tracker = FaceTracker("bypass")
    rows: list[NDArray[np.float64]] = []
    for frame in frames:
        face = tracker.track(frame)
        rows.append(np.full(12, np.nan) if face is None else _row(face.landmarks, face.matrix))
    table = np.array(rows).reshape(-1, 12)
    return Lips(table[:, 0], table[:, 1], table[:, 2:6], table[:, 6:].reshape(-1, 2, 3))


def _row(landmarks: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    points = landmarks[:, :2].astype(np.float64)
    eyes, wide = (float(np.linalg.norm(points[a] - points[b])) for a, b in (_EYES, _CORNERS))
    lips = points[[*_CORNERS, *_OUTER]]
    margin = np.array([_BESIDE, _ABOVE]) * np.ptp(lips[:, 0])
    numbers = (lip_gap(landmarks), wide / eyes)
    return np.concatenate([numbers, lips.min(0) - margin, lips.max(0) + margin, matrix.ravel()])
