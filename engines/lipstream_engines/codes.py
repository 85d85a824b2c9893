"""Codes of a ring in FP8: numbers as QuantizeLinear rounds them, and what a code tells of the number that it was."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_ALL = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
_NUMBERS = np.unique(_ALL[np.isfinite(_ALL)])
"""What the codes stand for, without scale, from -448 to 448."""
_BETWEEN = (_NUMBERS[1:] + _NUMBERS[:-1]) / 2
_LEAST, _MOST = np.append(-np.inf, _BETWEEN), np.append(_BETWEEN, np.inf)
"""The interval of the numbers that are rounded to each."""


def to_codes(x: NDArray[np.float32], scale: float) -> NDArray[Any]:
    """`x` in units of `scale`, rounded to nearest even, what is too large to the largest: of type E4M3."""
    units = x / np.float32(scale)
    codes: NDArray[Any] = np.clip(units, _NUMBERS[0], _NUMBERS[-1]).astype(E4M3)
    return codes


def nearest(codes: NDArray[Any], scale: float, expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers closest to `expected` that are rounded to `codes` (NaN for NaN); both are of one shape.

    An engine that computes x where `expected` is right is off by |x - expected| before it rounds. Its code shows an
    interval that contains x, so the number returned is never further off, and equals `expected` if that has the same
    code.
    """
    found = codes.astype(np.float32)
    at = np.searchsorted(_NUMBERS, np.nan_to_num(found, nan=0.0))
    number = np.clip(expected / np.float32(scale), _LEAST[at], _MOST[at]) * np.float32(scale)
    return np.where(np.isnan(found), found, number).astype(np.float32)
