"""Removes jitter from moving points with little lag."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_SPEED_CUTOFF = 2.0  # Hz, low pass of the speed estimate


class OneEuroFilter:
    """The 1-euro filter (Casiez et al., CHI 2012) for a set of points that move together.

    A low pass of first order whose cut-off grows with speed: strong at rest, almost absent in motion. One speed, the
    root mean square over all points, is used for all of them, so that their shape is not distorted.

    Args:
        rate: samples per second.
        cutoff: cut-off at rest, in Hz; lower is steadier.
        gain: how much the cut-off rises, in Hz per unit of speed (units of length per second); higher lags less.
    """

    def __init__(self, rate: float = 25.0, cutoff: float = 1.0, gain: float = 30.0) -> None:
        self._rate, self._cutoff, self._gain = rate, cutoff, gain
        self.reset()

    def reset(self) -> None:
        """Reset the state: the next points are returned unchanged."""
        self._value: NDArray[np.float64] | None = None
        self._previous: NDArray[np.float64] | None = None
        self._velocity: NDArray[np.float64] | None = None

    def __call__(self, points: NDArray[np.float64], unit: float = 1.0) -> NDArray[np.float64]:
        """Smoothed `points` [N, D] of the next sample; speed is measured in multiples of `unit`."""
        if self._value is None or self._velocity is None or self._previous is None:
            self._value, self._previous, self._velocity = points, points, np.zeros_like(points)
            return points
        velocity = (points - self._previous) * self._rate
        self._velocity = self._velocity + self._alpha(_SPEED_CUTOFF) * (velocity - self._velocity)
        speed = float(np.sqrt(np.mean(np.sum(self._velocity**2, axis=1)))) / unit
        self._value = self._value + self._alpha(self._cutoff + self._gain * speed) * (points - self._value)
        self._previous = points
        return self._value

    def _alpha(self, cutoff: float) -> float:
        rise = 2 * math.pi * cutoff / self._rate
        return rise / (rise + 1)
