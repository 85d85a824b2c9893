"""Noise in space: the same for every person, looked up at another place."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

_SIDE = 32
_rng = np.random.default_rng(7)
COARSE, FINE = (
    np.clip(_rng.standard_normal((_SIDE, _SIDE, _SIDE), np.float32) * np.float32(1.6), -3, 3) for _ in range(2)
)
"""Two volumes float32 [32, 32, 32] that repeat; interpolated, their standard deviation is about 0.5."""


@compiled
def at(volume: NDArray[np.float32], x: float, y: float, z: float) -> float:
    """`volume` at a point in units of its cells, interpolated.

    The axes are turned first: a lattice along the axes of a face shows as a grid on its skin.
    """
    x, y, z = 0.67 * x + 0.49 * y - 0.56 * z, -0.21 * x + 0.85 * y + 0.49 * z, 0.71 * x - 0.21 * y + 0.67 * z
    left, low, near = math.floor(x), math.floor(y), math.floor(z)
    u, v, w = x - left, y - low, z - near
    i, j, k = int(left) & 31, int(low) & 31, int(near) & 31
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    a = volume[i, j, k] * (1 - w) + volume[i, j, k1] * w
    b = volume[i, j1, k] * (1 - w) + volume[i, j1, k1] * w
    c = volume[i1, j, k] * (1 - w) + volume[i1, j, k1] * w
    d = volume[i1, j1, k] * (1 - w) + volume[i1, j1, k1] * w
    return float((a * (1 - v) + b * v) * (1 - u) + (c * (1 - v) + d * v) * u)


@compiled
def at_all(volume: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.float32]:
    """`volume` at points [n, 3] -> float32 [n]."""
    values = np.empty(len(points), np.float32)
    for i in range(len(points)):
        values[i] = at(volume, points[i, 0], points[i, 1], points[i, 2])
    return values
