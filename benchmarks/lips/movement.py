"""How well the lips of a result move: what they follow, whether they close, how far they move."""

from __future__ import annotations

import numpy as np
from lipstream_evaluate.statistics import correlation
from numpy.typing import NDArray

from .people import Wanted
from .tracks import Lips, Track

Numbers = dict[str, float]

_LARGE = 0.45  # opening at which lips must not be together
_CLOSED = 0.2  # part of the way from the least gap to the largest, below which lips count as closed


def follows(track: Track, wanted: NDArray[np.floating], lags: range = range(1)) -> float:
    """The best correlation with what is wanted at these lags (positive: late).

    0 for a mouth that does not move or is not seen, NaN if nothing but one value is wanted.
    """
    if np.ptp(wanted) == 0:
        return float("nan")
    found = [r for lag in lags if not np.isnan(r := correlation(track, wanted, lag))]
    return max(found, default=0.0)


def following(result: Lips, said: dict[str, Wanted]) -> Numbers:
    """Correlation of gap, width and rounding (a narrow mouth) with those of B, what the result says, with C and with A.

    By name: ``gap``, ``gap_best`` at the best lag within a frame, ``gap_other`` (C), ``gap_source`` (A, which the
    source says), and so on for the others.
    """
    numbers = {}
    for name, track in (("gap", result.gap), ("width", result.width), ("rounding", -result.width)):
        a, b, c = (getattr(said[speech], "opening" if name == "gap" else name) for speech in "ABC")
        numbers[name] = follows(track, b)
        numbers[f"{name}_best"] = follows(track, b, range(-1, 2))
        numbers[f"{name}_other"], numbers[f"{name}_source"] = follows(track, c), follows(track, a)
    return numbers


def closed_below(source: Lips) -> float:
    """The gap below which lips count as closed: near the least that FaceMesh finds for this face."""
    low, high = np.nanpercentile(source.gap, [2, 98])
    return float(low + _CLOSED * (high - low))


def closing(gap: Track, said: dict[str, Wanted], threshold: float) -> Numbers:
    """Closures met, and false ones.

    ``closures`` is the share of those of B in which the lips meet, in their frames or one beside, and
    ``closures_other`` that of C: what chance gives. ``false_closures`` is the share of the frames for which B asks a
    large opening in which the lips are together. NaN if there are none.

    Args:
        gap: of the result, float64 [n]. threshold: see `closed_below`.
    """
    wanted, other = said["B"], said["C"]
    closed = gap < threshold  # False where NaN
    return {
        "closures": _share(_met(closed, wanted.closures)),
        "closures_other": _share(_met(closed, other.closures)),
        "false_closures": _share(closed[wanted.opening > _LARGE]),
    }


def _met(closed: NDArray[np.bool_], wanted: list[tuple[int, int]]) -> NDArray[np.bool_]:
    return np.array([closed[max(0, first - 1) : last + 2].any() for first, last in wanted], bool)


def amplitude(result: Lips, source: Lips) -> Numbers:
    """Standard deviation of gap and width over the source's own."""
    return {
        "amplitude_gap": float(np.nanstd(result.gap) / np.nanstd(source.gap)),
        "amplitude_width": float(np.nanstd(result.width) / np.nanstd(source.width)),
    }


def _share(held: NDArray[np.bool_]) -> float:
    return float(held.mean()) if held.size else float("nan")
