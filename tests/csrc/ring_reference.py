"""The K/V cache of the released model in float64: the reference for the ring.

K is cached before RoPE; at every call the window is gathered, sink first, and its frames are numbered 0, 1, 2, ...
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
THETA = 10000.0


def pair_counts(head_dim: int) -> tuple[int, int, int]:
    """Pairs of a head that rotate with time, height and width."""
    space = head_dim // 6
    return head_dim // 2 - 2 * space, space, space


def rope_angles(frame: NDArray[np.int64], grid: tuple[int, int], head_dim: int) -> Array:
    """Angles [F, T, head_dim / 2] for latent frames numbered `frame` [F] of `grid` = (height, width) tokens."""
    height, width = grid
    y, x = np.divmod(np.arange(height * width), width)
    axes = [np.repeat(frame[:, None], height * width, 1), np.tile(y, (len(frame), 1)), np.tile(x, (len(frame), 1))]
    parts = [
        position[:, :, None] * THETA ** (-2 * np.arange(pairs) / (2 * pairs))
        for position, pairs in zip(axes, pair_counts(head_dim), strict=True)
        if pairs
    ]
    return np.concatenate(parts, axis=2)


def rope(x: Array, frame: NDArray[np.int64], grid: tuple[int, int]) -> Array:
    """`x` [F, T, H, D] with its pairs, as complex numbers, rotated by their angles."""
    pairs = np.ascontiguousarray(x, np.float64).view(np.complex128)
    turned: Array = (pairs * np.exp(1j * rope_angles(frame, grid, x.shape[-1]))[:, :, None, :]).view(np.float64)
    return turned


def attention(q: Array, k: Array, v: Array) -> Array:
    """Softmax attention of all tokens of `q` to all of `k`, `v`; every one [F, T, H, D]."""
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    output: Array = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)
    return output


class OriginalCache:
    def __init__(self, window: int, sink: int, grid: tuple[int, int]) -> None:
        self.window, self.sink, self.grid = window, sink, grid
        self.k: list[Array] = []  # [T, H, D] per frame
        self.v: list[Array] = []

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        """Output of one pass of a chunk, `q`, `k`, `v` [c, T, H, D]; nothing is cached."""
        keys, values = self._gather(self.k, k), self._gather(self.v, v)
        number = np.arange(len(keys))
        return attention(rope(q, number[-len(q) :], self.grid), rope(keys, number, self.grid), values)

    def store(self, k: Array, v: Array) -> None:
        """Cache a chunk, dropping the oldest frames outside the sink."""
        for cached, live in ((self.k, k), (self.v, v)):
            excess = len(cached) + len(live) - self.window
            if excess > 0:
                del cached[self.sink : self.sink + excess]
            cached.extend(live)

    def _gather(self, cached: list[Array], live: Array) -> Array:
        total = len(cached) + len(live)
        if total > self.window:
            cached = cached[: self.sink] + cached[max(self.sink, total - (self.window - self.sink)) :]
        return np.stack([*cached, *live])
