"""Temporal RoPE: the angles of latent frames, computed on the host in float64 and passed to the graphs as tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THETA = 10000.0


def temporal_angles(frames: NDArray[np.int64], head_dim: int) -> NDArray[np.float64]:
    """Angles [F, pairs] (radians) by which RoPE rotates the temporal pairs of a head at the latent frames `frames` [F].

    Of the head's ``head_dim / 2`` pairs, ``head_dim // 6`` belong to each of height and width, the rest to time.
    """
    pairs = head_dim // 2 - 2 * (head_dim // 6)
    return frames.astype(np.float64)[:, None] * THETA ** (-np.arange(pairs) / pairs)


def temporal_tables(frames: NDArray[np.int64], head_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine of `temporal_angles`, float32 [F, pairs] each, rounded once from float64."""
    angles = temporal_angles(frames, head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
