"""A sheet of paint: a float32 RGB image addressed in face units, with soft-edged polygons.

Face units are pixels of the 420 x 560 alignment canvas with x = 0 on the midline: a neutral face of average proportions
is at its aligned position. y points down.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.float32]
Points = NDArray[np.float64]
Colour = Sequence[float] | NDArray[np.floating]

_SHIFT = 4  # cv2 takes sub-pixel polygons in 1/16 pixel


class Sheet:
    """float32 RGB in 0..255 over the rectangle (x0, y0)..(x1, y1) in face units, `density` pixels per unit.

    Attributes:
        rgb: float32 [h, w, 3]; may be replaced by an array with another number of channels.
    """

    def __init__(self, extent: tuple[float, float, float, float], density: float, colour: Colour = (0, 0, 0)) -> None:
        self.extent, self.density = extent, density
        x0, y0, x1, y1 = extent
        self.height, self.width = max(2, round((y1 - y0) * density)), max(2, round((x1 - x0) * density))
        self.rgb: Image = np.empty((self.height, self.width, 3), np.float32)
        self.rgb[:] = np.asarray(colour, np.float32)
        self.x = (np.arange(self.width, dtype=np.float32) + 0.5) / density + x0
        self.y = (np.arange(self.height, dtype=np.float32) + 0.5) / density + y0

    @property
    def to_pixels(self) -> Points:
        """float64 [2, 3]: face units -> pixel coordinates (pixel centres are whole numbers)."""
        d = self.density
        return np.array([[d, 0, -self.extent[0] * d - 0.5], [0, d, -self.extent[1] * d - 0.5]])

    def window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        """Rows and columns of a rectangle in face units, clipped to the sheet."""
        d, (left, top) = self.density, self.extent[:2]
        rows = slice(max(0, int((y0 - top) * d)), max(0, min(self.height, int(np.ceil((y1 - top) * d)))))
        columns = slice(max(0, int((x0 - left) * d)), max(0, min(self.width, int(np.ceil((x1 - left) * d)))))
        return rows, columns

    def mask(self, points: ArrayLike, soft: float = 0.0) -> tuple[Image, tuple[slice, slice]]:
        """Coverage of a polygon in 0..1 within its own window of the sheet.

        Args:
            points: [n, 2] in face units.
            soft: standard deviation of its edge, in face units.
        """
        outline = np.asarray(points, np.float64)
        margin = 3 * soft + 1.5 / self.density
        rows, columns = self.window(*(outline.min(0) - margin), *(outline.max(0) + margin))
        area = np.zeros((max(0, rows.stop - rows.start), max(0, columns.stop - columns.start)), np.uint8)
        if area.size:
            pixels = outline @ self.to_pixels[:, :2].T + self.to_pixels[:, 2] - (columns.start, rows.start)
            fixed = np.round(pixels * (1 << _SHIFT)).astype(np.int32)
            cv2.fillPoly(area, [fixed], 255, cv2.LINE_AA, _SHIFT)
            if soft * self.density > 0.3:
                area = cv2.GaussianBlur(area, (0, 0), soft * self.density)
        return np.multiply(area, np.float32(1 / 255), dtype=np.float32), (rows, columns)

    def polygon(self, points: ArrayLike, colour: Colour, alpha: float = 1.0, soft: float = 0.0) -> None:
        """Paint a polygon over the sheet."""
        area, window = self.mask(points, soft)
        self.blend(area * alpha if alpha != 1.0 else area, colour, window)

    def blend(self, area: Image, colour: Colour | Image, window: tuple[slice, slice]) -> None:
        """Paint `colour` (one, or an image of the window) where `area` is 1."""
        patch = self.rgb[window]
        patch += (np.asarray(colour, np.float32) - patch) * area[..., None]

    def multiply(self, points: ArrayLike, factor: Colour, soft: float = 0.0) -> None:
        """Darken or lighten a polygon: a shadow, a blush."""
        area, window = self.mask(points, soft)
        scale = area[..., None] * (np.asarray(factor, np.float32) - 1)
        scale += 1
        self.rgb[window] *= scale

    def line(self, points: ArrayLike, thickness: float, colour: Colour, alpha: float = 1.0, soft: float = 0.0) -> None:
        """Paint an open line that tapers towards both ends."""
        self.polygon(stroke(points, thickness), colour, alpha, soft)


def stroke(points: ArrayLike, thickness: float) -> Points:
    """Outline [m, 2] of a line [n, 2] with tapering ends."""
    path = np.asarray(points, np.float64)
    along = np.gradient(path, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1) / (np.hypot(along[:, 0], along[:, 1])[:, None] + 1e-9)
    half = 0.5 * thickness * np.sqrt(np.clip(np.sin(np.pi * np.linspace(0.03, 0.97, len(path))), 0, 1))[:, None]
    return np.concatenate([path + across * half, (path - across * half)[::-1]])


@cache
def _spline_weights(steps: int) -> NDArray[np.float64]:
    t = (np.arange(steps) / steps)[:, None]
    columns = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    return np.asarray(0.5 * np.concatenate(columns, axis=1))


def curve(points: ArrayLike, closed: bool = False, steps: int = 6) -> Points:
    """Catmull-Rom spline through `points` [n, 2]."""
    knots = np.asarray(points, np.float64)
    if closed:
        padded = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    spans = np.stack([padded[i : len(padded) - 3 + i] for i in range(4)], axis=1)  # [spans, 4, 2]
    smooth = (_spline_weights(steps) @ spans).reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, knots[-1:]])


def mirrored(right: ArrayLike) -> Points:
    """A closed outline from its right half, listed from the midline at the bottom to the midline at the top."""
    half = np.asarray(right, np.float64)
    left = half[::-1] * (-1, 1)
    return np.concatenate([half, left[left[:, 0] != 0]])


@cache
def _circle(points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.cos(turn), np.sin(turn)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0, points: int = 28) -> Points:
    """Outline of an ellipse; `angle` in radians."""
    cosines, sines = _circle(points)
    u, v = rx * cosines, ry * sines
    return np.stack([x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle)], 1)


def smooth_noise(shape: tuple[int, int], grain: tuple[float, float], rng: np.random.Generator) -> Image:
    """Unit-variance noise [h, w] with blobs of about grain (rows, columns) pixels."""
    rows, columns = (max(2, int(np.ceil(n / max(g, 1.0))) + 2) for n, g in zip(shape, grain, strict=True))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    fine = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine / max(float(fine.std()), 1e-6), np.float32)


def ramp(value: NDArray[np.floating] | float, low: float, high: float) -> Image:
    """Smoothstep from 0 at `low` to 1 at `high`."""
    t = np.clip((np.asarray(value, np.float32) - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
