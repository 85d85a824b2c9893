"""Correlations of tracks, and means over clips with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def correlation(a: NDArray[np.floating], b: NDArray[np.floating], lag: int = 0) -> float:
    """Pearson's correlation of ``a[i + lag]`` with ``b[i]``: at a positive lag `a` comes later.

    Frames that are NaN in either are left out. NaN when either is constant, or fewer than half of the frames remain.
    """
    n = min(len(a), len(b))
    x, y = (a[lag:n], b[: n - lag]) if lag >= 0 else (a[: n + lag], b[-lag:n])
    valid = ~(np.isnan(x) | np.isnan(y))
    x, y = x[valid], y[valid]
    if 2 * len(x) < n or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def summary(values: Sequence[float], *, draws: int = 10_000) -> dict[str, Any]:
    """Mean over clips or people, its 95 % confidence interval (percentile bootstrap), least and greatest.

    NaN does not count; `values` says how many did. The interval is None with fewer than two, everything with none.
    """
    x = np.asarray(values, np.float64)
    x = x[~np.isnan(x)]
    if not x.size:
        return {"mean": None, "ci95": None, "min": None, "max": None, "values": 0}
    means = np.random.default_rng(0).choice(x, (draws, x.size)).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "mean": float(x.mean()),
        "ci95": [float(low), float(high)] if x.size > 1 else None,
        "min": float(x.min()),
        "max": float(x.max()),
        "values": int(x.size),
    }


def frechet(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of features [n, d] and [m, d].

    |mu_a - mu_b|^2 + tr(A + B - 2 (AB)^1/2) (Heusel et al. 2017). NaN with fewer than two samples in either.

    With fewer samples than dimensions the root of AB cannot be computed accurately, so the trace is computed as the
    nuclear norm of the product of the centred samples, which is equal.
    """
    if len(a) < 2 or len(b) < 2:
        return float("nan")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference = a.mean(0) - b.mean(0)
    x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (a, b))
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum() if min(len(x), len(y)) < x.shape[1] else _trace(x, y)
    return max(0.0, float(difference @ difference + np.square(x).sum() + np.square(y).sum() - 2 * shared))


def _trace(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """tr((AB)^1/2) for A = x'x, B = y'y [d, d]: the nuclear norm of A^1/2 B^1/2."""
    r, s = (np.asarray(np.linalg.qr(z, mode="r"), np.float64) for z in (x, y))
    return float(np.linalg.svd(r @ s.T, compute_uv=False).sum())
