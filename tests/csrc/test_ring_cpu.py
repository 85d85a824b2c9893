"""The CPU kernels: a stream through the ring attends like the released model's cache, computed from its definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream import _native
from numpy.typing import NDArray
from ring_reference import Array, OriginalCache, attention, pair_counts, rope, rope_angles

GRID, HEADS, HEAD_DIM = (2, 3), 2, 14
TOKENS = GRID[0] * GRID[1]
TIME = pair_counts(HEAD_DIM)[0]
WINDOWS = [(7, 1), (10, 1), (13, 1), (9, 3), (12, 3), (6, 0), (8, 2), (10, 4), (4, 1), (14, 8)]
Stored = NDArray[np.float32] | NDArray[np.uint16]


def to_bfloat16(x: NDArray[np.floating]) -> NDArray[np.uint16]:
    return torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16).view(torch.uint16).numpy()


def to_float64(x: Stored) -> Array:
    if x.dtype == np.uint16:
        return torch.from_numpy(x).view(torch.bfloat16).double().numpy()
    return x.astype(np.float64)


def cos_sin(angles: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class Ring:
    """The calls of a session to the native functions, for one layer."""

    def __init__(self, window: int, sink: int, c: int, bfloat16: bool = False) -> None:
        self.window, self.sink, self.c = window, sink, c
        dtype = np.uint16 if bfloat16 else np.float32
        junk = 0x7FC0 if bfloat16 else np.nan  # what was never written must never be read
        self.k, self.v = (np.full((window, TOKENS, HEADS, HEAD_DIM), junk, dtype) for _ in range(2))
        self.sink_base = np.full((sink, TOKENS, HEADS, HEAD_DIM), junk, dtype)

    def begin(self, chunk: int) -> None:
        self.position = p = _native.ring_position(chunk, self.window, self.sink, self.c)
        rolling = self.window - self.sink
        _native.ring_keep(self.k, self.v, self.sink_base, p.keep_slot, rolling, p.keep_first, p.keep_count)
        shift = rope_angles(np.array([p.shift]), GRID, HEAD_DIM)[0, 0, :TIME]
        _native.ring_anchor(self.k, self.sink_base, rolling, p.anchored, *cos_sin(shift))
        self.frames = chunk * self.c + np.arange(self.c)
        angles = rope_angles(self.frames, GRID, HEAD_DIM)
        self.tables = (*cos_sin(angles[:, 0, :TIME]), *cos_sin(angles[0, :, TIME:]))

    def attend(self, q: Array, k: Stored, v: Stored) -> Array:
        _native.ring_write(self.k, self.v, k, v, self.position.slot, *self.tables)
        valid = self.position.valid
        return attention(rope(q, self.frames, GRID), to_float64(self.k[:valid]), to_float64(self.v[:valid]))


def passes(rng: np.random.Generator, c: int, bfloat16: bool) -> Iterator[tuple[Array, Stored, Stored]]:
    for _ in range(3):
        q, k, v = rng.standard_normal((3, c, TOKENS, HEADS, HEAD_DIM))
        yield q, *((to_bfloat16(x) if bfloat16 else x.astype(np.float32)) for x in (k, v))


def worst_difference(
    window: int, sink: int, c: int, chunks: list[int], bfloat16: bool = False, settle: int = 0
) -> float:
    """Largest difference to the reference over all passes, from chunk number `settle` of the list on."""
    ring, original = Ring(window, sink, c, bfloat16), OriginalCache(window, sink, GRID)
    rng, worst = np.random.default_rng(1), 0.0
    for i, chunk in enumerate(chunks):
        ring.begin(chunk)
        for q, k, v in passes(rng, c, bfloat16):
            ours = ring.attend(q, k, v)
            if i >= settle:
                worst = max(worst, float(np.abs(ours - original.attend(q, to_float64(k), to_float64(v))).max()))
        original.store(to_float64(k), to_float64(v))
    return worst


@pytest.mark.parametrize(("window", "sink"), WINDOWS)
def test_attends_like_the_original(window: int, sink: int) -> None:
    assert worst_difference(window, sink, 3, list(range(12))) < 3e-6


@pytest.mark.parametrize(("window", "sink"), [(7, 1), (6, 0), (14, 8)])
def test_attends_like_the_original_in_bfloat16(window: int, sink: int) -> None:
    # K is rounded once or twice more than there, to 8 bits: scores of about 1 are off by 2^-9 or so, outputs likewise.
    assert worst_difference(window, sink, 3, list(range(12)), bfloat16=True) < 0.015


@settings(max_examples=25, deadline=None)
@given(c=st.integers(1, 4), blocks=st.integers(1, 4), sink=st.integers(0, 9))
def test_attends_like_the_original_for_any_geometry(c: int, blocks: int, sink: int) -> None:
    assert worst_difference(c * blocks + sink, sink, c, list(range(blocks + sink // c + 4))) < 3e-6


@pytest.mark.parametrize(("window", "sink"), [(7, 1), (14, 8)])
def test_attends_like_the_original_after_days(window: int, sink: int) -> None:
    blocks = (window - sink) // 3
    start = list(range(8))
    later = 30_000_000 - 30_000_000 % blocks + 8 % blocks  # the same block comes next, 160 days on
    chunks = start + list(range(later, later + blocks + 4))
    # The frames of the blocks left behind at the jump are not in their place; a whole window later none is attended.
    assert worst_difference(window, sink, 3, chunks, settle=8 + blocks) < 3e-6


def test_a_wrong_shift_changes_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _native.ring_anchor
    monkeypatch.setattr(
        _native, "ring_anchor", lambda k, base, rolling, count, cos, sin: whole(k, base, rolling, count, sin, cos)
    )
    assert worst_difference(7, 1, 3, list(range(4)), bfloat16=True) > 0.1


def test_bfloat16_rounds_to_nearest_even() -> None:
    k, v = map(to_bfloat16, np.random.default_rng(2).standard_normal((2, 3, TOKENS, HEADS, HEAD_DIM)))
    angles = rope_angles(np.arange(6, 9), GRID, HEAD_DIM)
    (cos_t, sin_t), (cos_s, sin_s) = cos_sin(angles[:, 0, :TIME]), cos_sin(angles[0, :, TIME:])
    v[0, 0, 0, :4] = 0x7FC0, 0xFFFF, 0x7F80, 0x0001  # V is moved, not computed with: NaN, infinity, a subnormal
    k_ring, v_ring = np.zeros((2, 7, TOKENS, HEADS, HEAD_DIM), np.uint16)
    _native.ring_write(k_ring, v_ring, k, v, 3, cos_t, sin_t, cos_s, sin_s)

    cos = np.concatenate([np.tile(cos_t[:, None], (1, TOKENS, 1)), np.tile(cos_s, (3, 1, 1))], 2)[:, :, None]
    sin = np.concatenate([np.tile(sin_t[:, None], (1, TOKENS, 1)), np.tile(sin_s, (3, 1, 1))], 2)[:, :, None]
    x = to_float64(k).astype(np.float32)
    a, b = x[..., 0::2], x[..., 1::2]
    rotated = np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(k.shape)
    np.testing.assert_array_equal(k_ring[3:6], to_bfloat16(rotated))
    np.testing.assert_array_equal(v_ring[3:6], v)
    for ring in (k_ring, v_ring):
        assert not ring[:3].any()
        assert not ring[6:].any()


def test_bfloat16_rounding_of_edge_values() -> None:
    """Values that a rotation by (1, 1) maps to ties, to overflow and to NaN, rounded as in PyTorch."""
    values = np.array([1.0, 2**-8, 3 * 2**-8, 3.3895e38, -3.3895e38, np.inf, np.nan, 1e-40, -0.0, 255.0], np.float32)
    a, b = (to_bfloat16(x.reshape(-1)) for x in np.meshgrid(values, values))
    k = np.stack([a, b], -1).reshape(1, len(a), 1, 2)
    k_ring, v_ring = np.zeros((2, *k.shape), np.uint16)
    one = np.ones((1, 1), np.float32)
    none = np.ones((len(a), 0), np.float32)
    _native.ring_write(k_ring, v_ring, k, k, 0, one, one, none, none)

    x, y = (to_float64(part).astype(np.float32) for part in (a, b))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.stack([x - y, x + y], -1).reshape(k.shape)
    np.testing.assert_array_equal(to_float64(k_ring), to_float64(to_bfloat16(expected)))


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("threads", [2, 3, 7, 500])
def test_the_number_of_threads_changes_no_bit(bfloat16: bool, threads: int) -> None:
    rng = np.random.default_rng(3)
    shape = (3, 40, HEADS, HEAD_DIM)
    k, v = (to_bfloat16(x) if bfloat16 else x.astype(np.float32) for x in rng.standard_normal((2, *shape)))
    angles = rope_angles(np.arange(3), (5, 8), HEAD_DIM)
    (cos_t, sin_t), (cos_s, sin_s) = cos_sin(angles[:, 0, :TIME]), cos_sin(angles[0, :, TIME:])

    def run(count: int) -> tuple[bytes, bytes]:
        k_ring, v_ring = np.zeros((2, 5, *shape[1:]), k.dtype)
        _native.ring_write(k_ring, v_ring, k, v, 0, cos_t, sin_t, cos_s, sin_s, threads=count)
        _native.ring_anchor(k_ring, v[:2].copy(), 3, 2, cos_t[2], sin_t[2], threads=count)
        return k_ring.tobytes(), v_ring.tobytes()

    assert run(threads) == run(1)
