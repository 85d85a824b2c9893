"""Vertices of the shared head that are points of the lips."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .asset import SKIN, load_asset


@cache
def lip_vertices() -> NDArray[np.intp]:
    """Numbers [6] of the left and right corner in the picture, then the middles of the upper lip's outer and inner and
    the lower's inner and outer edge."""
    asset = load_asset()
    x, y, z = asset.vertices.T
    jaw = asset.targets[list(asset.names).index("unit/jawOpen")]
    lips = np.flatnonzero((asset.lips > 0.5) & (asset.inner < 0.5) & asset.has(SKIN) & (z > 1.0))
    middle = lips[np.abs(x[lips]) < 0.02]
    moves = np.linalg.norm(jaw[middle], axis=1)
    lower = moves > 0.5 * moves.max()
    above, below = middle[~lower], middle[lower]
    return np.array(
        [
            lips[x[lips].argmin()],
            lips[x[lips].argmax()],
            above[y[above].argmax()],
            above[y[above].argmin()],
            below[y[below].argmax()],
            below[y[below].argmin()],
        ]
    )
