"""Tracks the face and the opening of its mouth in every frame of a video, and crops it for the networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from lipstream.face import FaceTracker, crop, lip_gap
from lipstream.face.landmarks import bounding_box
from numpy.typing import NDArray

from .syncnet import SyncNetConfig

Image = NDArray[np.uint8]
Track = NDArray[np.float64]

MOUTH = (73.0, 266.0, 347.0, 537.0)
"""What a lip-sync system may change: a rectangle of the alignment canvas, from below the eyes to below the chin."""
_EYES = (33, 263)  # FaceMesh: outer corners
_CORNERS = (61, 291)  # of the mouth
_FIVE = ((33, 133), (263, 362), (4,), (61,), (291,))  # eyes (outer and inner corner), tip of the nose, mouth
_SMOOTH = 13  # frames of the median over a face's size, in syncnet_python
_MARGIN = 0.4  # around the face, of its half size, in syncnet_python
_GREY = (110, 110, 110)  # beyond the frame, in syncnet_python


@dataclass(frozen=True)
class FaceTrack:
    """The face in n frames; NaN where none was detected.

    Attributes:
        gap: between the lips, and width: of the mouth, in distances of the outer eye corners, float64 [n].
        boxes: x0, y0, x1, y1 in pixels, float64 [n, 4]. matrices: frame to alignment canvas, float64 [n, 2, 3].
        five: eyes, nose, corners of the mouth, float64 [n, 5, 2] pixels.
    """

    gap: Track
    width: Track
    boxes: Track
    matrices: Track
    five: Track

    @property
    def seen(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.gap)


def track_faces(frames: Iterable[Image]) -> FaceTrack:
    """Follow the largest face through the frames of a video, uint8 [H, W, 3] RGB."""
    tracker = FaceTracker("bypass", smooth=False)
    rows: list[NDArray[np.float64]] = []
    for frame in frames:
        face = tracker.track(frame)
        if face is None:
            rows.append(np.full(22, np.nan))
            continue
        points = face.landmarks[:, :2].astype(np.float64)
        left, right, outer_left, outer_right = (points[i] for i in (*_CORNERS, *_EYES))
        width = np.linalg.norm(right - left) / np.linalg.norm(outer_right - outer_left)
        five = np.stack([points[list(group)].mean(axis=0) for group in _FIVE])
        numbers = (lip_gap(face.landmarks), width)
        rows.append(np.concatenate([numbers, bounding_box(face.landmarks), face.matrix.ravel(), five.ravel()]))
    table = np.array(rows).reshape(-1, 22)
    return FaceTrack(
        table[:, 0], table[:, 1], table[:, 2:6], table[:, 6:12].reshape(-1, 2, 3), table[:, 12:].reshape(-1, 5, 2)
    )


def squares(boxes: Track) -> Track:
    """Centre x, centre y and half size of each face, float64 [n, 3], as `syncnet_python` crops: smoothed over time.

    Frames without a face get the square of the nearest frame with one. NaN if no frame has a face.
    """
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    if not known.size:
        return np.full((len(boxes), 3), np.nan)
    x0, y0, x1, y1 = (np.interp(np.arange(len(boxes)), known, boxes[known, i]) for i in range(4))
    each = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, np.maximum(x1 - x0, y1 - y0) / 2], axis=1)
    around = np.pad(each, ((_SMOOTH // 2, _SMOOTH // 2), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(around, _SMOOTH, axis=0)
    return np.asarray(np.median(windows, axis=-1))


def face_crop(frame: Image, square: NDArray[np.float64], size: int = 224) -> Image:
    """The face with `syncnet_python`'s margins, uint8 [size, size, 3]; `square` is a row of `squares`."""
    x, y, half = square
    reach = half * (1 + _MARGIN)
    left, top = x - reach, y - half
    scale = 2 * reach / size
    matrix = np.array([[scale, 0, left + scale / 2 - 0.5], [0, scale, top + scale / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if scale > 1.5:  # for a smaller picture, pixels are averaged
        side = round(2 * reach)
        matrix = np.array([[1.0, 0, round(left)], [0, 1.0, round(top)]])
        cut = cv2.warpAffine(frame, matrix, (side, side), flags=flags, borderValue=_GREY)
        return np.asarray(cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.warpAffine(frame, matrix, (size, size), flags=flags, borderValue=_GREY), np.uint8)


def sync_crop(frame: Image, config: SyncNetConfig, square: NDArray[np.float64], matrix: NDArray[np.float64]) -> Image:
    """The input of this SyncNet from a frame, uint8 [size, size, 3] RGB.

    Args:
        square: a row of `squares`. matrix: frame to alignment canvas, float64 [2, 3].
    """
    if config.crop is None:
        return face_crop(frame, square, config.size)
    return crop(frame, matrix, config.size, config.crop)


def mouth_area(shape: tuple[int, ...], matrix: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True where `MOUTH` lies in a frame of `shape` (height, width, ...), bool [H, W]."""
    left, top, right, bottom = MOUTH
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    back = cv2.invertAffineTransform(matrix)
    area = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(area, np.round(corners @ back[:, :2].T + back[:, 2]).astype(np.int32), 1)
    return area.astype(bool)
