"""Measure the appearance and the opening of a mouth, independently of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from lipstream.face import FaceTracker, lip_gap
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Track = NDArray[np.float64]

_WINDOW = 96  # pixels of the rectified mouth window
_SPAN = 2.0  # its side over the width of the mouth
_ABOVE = 0.35  # part of it above the corners of the mouth
_LIPS = (61, 291, 0, 17)  # FaceMesh: corners, upper edge of the upper lip, lower edge of the lower lip


@dataclass(frozen=True)
class MouthLook:
    """The mouth of a result compared with that of its source, per frame, float64 [n]; NaN without a face.

    Attributes:
        gap: between the lips of the result, and source_gap: of the source, by FaceMesh.
        sharp, source_sharp: gradient energy, the mean square of the luma's differences, around the lips.
        flicker, source_flicker: mean absolute difference to the frame before, there.
    """

    gap: Track
    source_gap: Track
    sharp: Track
    source_sharp: Track
    flicker: Track
    source_flicker: Track

    @property
    def sharpness(self) -> float:
        """Gradient energy of the result over that of the source, over all frames with a face."""
        return float(np.nansum(self.sharp) / np.nansum(self.source_sharp))

    def unrest(self, frames: NDArray[np.bool_]) -> float:
        """Flicker of the result over that of the source in the chosen `frames`."""
        return float(np.nanmean(self.flicker[frames]) / np.nanmean(self.source_flicker[frames]))


def look(results: Iterable[NDArray[np.uint8]], sources: Iterable[NDArray[np.uint8]]) -> MouthLook:
    """Compare frames of a result with their source frames; the position of the lips is taken from the source."""
    ours, theirs = FaceTracker("bypass", smooth=False), FaceTracker("bypass", smooth=False)
    rows: list[tuple[float, ...]] = []
    before: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None
    for result, source in zip(results, sources, strict=False):
        seen, face = ours.track(result), theirs.track(source)
        gap = np.nan if seen is None else lip_gap(seen.landmarks)
        if face is None:
            rows.append((gap, *[np.nan] * 5))
        else:
            (left, top), (right, bottom) = (f(face.landmarks[list(_LIPS), :2], 0) for f in (np.min, np.max))
            wide, high = 0.15 * (right - left), 0.3 * (right - left)
            area = np.index_exp[
                max(0, int(top - high)) : int(bottom + high), max(0, int(left - wide)) : int(right + wide)
            ]
            pair = result[area], source[area]
            sharp = [_gradient_energy(picture) for picture in pair]
            flicker = [np.nan, np.nan]
            if before is not None:
                flicker = [
                    float(np.abs(now.astype(np.float32) - then[area]).mean())
                    for now, then in zip(pair, before, strict=True)
                ]
            rows.append((gap, lip_gap(face.landmarks), *sharp, *flicker))
        before = result, source
    return MouthLook(*np.array(rows, np.float64).reshape(-1, 6).T)


def _gradient_energy(picture: NDArray[np.uint8]) -> float:
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.square(np.diff(luma, axis=0)).mean() + np.square(np.diff(luma, axis=1)).mean())


def distance_from_rest(frames: Frames, resting: Frames, lips: NDArray[np.float64]) -> Track:
    """Difference of the mouth of each frame from the same moment drawn with the mouth at rest, float64 [n].

    The mean absolute difference (0..255) in a window that moves with the face.

    Args:
        frames: uint8 [n, H, W, 3].
        resting: uint8 [n, H, W, 3], the same person, pose and camera, mouth closed.
        lips: [n, 6, 2] of the resting mouth, as `draw_video` gives them.
    """
    pairs = zip(frames, resting, lips, strict=True)
    return np.array([np.abs(_window(a, points) - _window(b, points)).mean() for a, b, points in pairs])


def _window(frame: NDArray[np.uint8], lips: NDArray[np.float64]) -> NDArray[np.float32]:
    left, right = lips[0], lips[1]
    across = (right - left) * _SPAN
    down = np.array([-across[1], across[0]])
    corner = (left + right) / 2 - across / 2 - down * _ABOVE
    matrix = np.stack([across / _WINDOW, down / _WINDOW, corner], axis=1)  # window -> frame
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(frame, matrix, (_WINDOW, _WINDOW), flags=flags), np.float32)


def summary(values: Sequence[float], *, draws: int = 10_000) -> dict[str, float | list[float]]:
    """Mean over people, its 95 % confidence interval (percentile bootstrap), least and greatest."""
    x = np.asarray(values, np.float64)
    means = np.random.default_rng(0).choice(x, (draws, x.size)).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(x.mean()), "ci95": [float(low), float(high)], "min": float(x.min()), "max": float(x.max())}
