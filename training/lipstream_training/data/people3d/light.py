"""Light on a face: a lamp and what comes from all sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Light:
    """Linear RGB; about 1 is the light that shows white as white.

    Attributes:
        direction: float64 [3], unit vector towards the lamp.
        lamp: float64 [3], its colour.
        around: float64 [9, 3], light from all sides in spherical harmonics of the second degree: constant, y, z, x,
            then xy, yz, 3 z z - 1, xz, xx - yy.
    """

    direction: NDArray[np.float64]
    lamp: NDArray[np.float64]
    around: NDArray[np.float64]

    @classmethod
    def random(cls, rng: np.random.Generator) -> Light:
        side, height = rng.uniform(-1.25, 1.25), rng.uniform(-0.15, 1.05)
        direction = [math.sin(side) * math.cos(height), math.sin(height), math.cos(side) * math.cos(height)]
        share = rng.uniform(0.15, 0.9)  # of the lamp
        warm = rng.normal(0, 0.12)
        lamp = np.array([1 + warm, 1, 1 - warm]) * 1.5 * share * rng.uniform(0.9, 1.2)
        warm = rng.normal(0, 0.12)
        mean = np.array([1 + warm, 1, 1 - warm]) * (1 - share * 0.75) * 0.95
        around = np.zeros((9, 3))
        around[0] = mean
        around[1:4] = mean * rng.normal(0, 0.25, (3, 1)) * (1 + rng.normal(0, 0.15, (3, 3)))
        around[1] += mean * 0.25  # from above
        around[4:] = mean * rng.normal(0, 0.06, (5, 3))
        return cls(np.array(direction), lamp, around)
