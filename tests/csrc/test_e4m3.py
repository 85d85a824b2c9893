"""FP8 rings: the codes of ml_dtypes, the accuracy that 3 bits of mantissa allow, and what the plugin accepts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lipstream import _native
from lipstream.backends.base import Array
from numpy.typing import NDArray

E4M3 = ml_dtypes.float8_e4m3fn


def expected(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(x, -448, 448).astype(E4M3).view(np.uint8)


def test_codes_are_those_of_ml_dtypes() -> None:
    codes = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
    finite = codes[np.isfinite(codes)]
    ties = (finite[:-1] + finite[1:]) / 2
    near = np.concatenate([np.nextafter(ties, s, dtype=np.float32) for s in (np.float32(-1e9), np.float32(1e9))])
    x = np.concatenate([finite, ties, near, [0.0, -0.0, 449, -1e30, np.inf, -np.inf, 2**-10, 2**-11]]).astype(
        np.float32
    )
    np.testing.assert_array_equal(_native.e4m3(x), expected(x))
    assert _native.e4m3(np.float32([np.nan]))[0] & 0x7F == 0x7F


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_any_float_is_rounded_as_by_ml_dtypes(values: list[float]) -> None:
    x = np.array(values, np.float32)
    np.testing.assert_array_equal(_native.e4m3(x), expected(x))


def write(k: Array, v: Array, *, slots: int = 7, slot: int = 2) -> tuple[Array, Array]:
    """K (not rotated) and V, written to an FP8 ring and read back."""
    frames, tokens, heads, dim = k.shape
    codes = [np.zeros((slots, tokens, heads, dim), np.uint8) for _ in "kv"]
    scales = [np.zeros((slots, tokens, heads), np.float32) for _ in "kv"]
    pairs = dim // 2 - 2 * (dim // 6)
    tables = [np.full((frames, pairs), x, np.float32) for x in (1, 0)]
    tables += [np.full((tokens, dim // 2 - pairs), x, np.float32) for x in (1, 0)]
    _native.ring_write_e4m3(codes[0], scales[0], codes[1], scales[1], k, v, slot, *tables)
    back = [np.zeros((slots, tokens, heads, dim), np.float32) for _ in "kv"]
    for to, code, scale in zip(back, codes, scales, strict=True):
        _native.ring_read_e4m3(to, code, scale)
    return back[0][slot : slot + frames], back[1][slot : slot + frames]


def test_a_write_rounds_each_head_with_its_own_scale() -> None:
    """As in the benchmark of precision in PyTorch: the code of the largest value of every head and token is 448."""
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((3, 4, 2, 16)).astype(np.float32) * rng.uniform(1e-3, 50, (3, 4, 2, 1)) for _ in "kv")
    for found, x in zip(write(k.astype(np.float32), v.astype(np.float32)), (k, v), strict=True):
        x = x.astype(np.float32)
        scale = np.abs(x).max(-1, keepdims=True) / np.float32(448)
        rounded = (x / scale).astype(E4M3).astype(np.float32) * scale
        np.testing.assert_array_equal(found, rounded)
        assert np.linalg.norm(found - x) / np.linalg.norm(x) < 0.035


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros((3, 2, 1, 4), np.float32)
    for found in write(zeros, zeros):
        np.testing.assert_array_equal(found, zeros)


Tensors = list[tuple[str, list[int]]]


def tensors(ring: str = "bfloat16") -> Tensors:
    e4m3 = ring == "float8 (E4M3)"
    number = "bfloat16" if e4m3 else ring
    found: Tensors = [(ring, [7, 64, 3, 64])] * 2 + [(number, [3, 64, 3, 64])] * 2 + [("int64", [1])]
    found += [("float32", [3, 12])] * 2 + [("float32", [64, 20])] * 2
    return found + [("float32", [7, 64, 3])] * 2 * e4m3


@pytest.mark.parametrize("ring", ["float32", "float16", "bfloat16", "float8 (E4M3)"])
def test_the_plugin_accepts_a_ring(ring: str) -> None:
    found = _native.ring_call(tensors(ring))
    assert found["aliases"] == ([0, 1, 9, 10, -1, -1] if "E4M3" in ring else [0, 1])
    del found["aliases"]
    assert found == {"chunk_frames": 3, "temporal_pairs": 12, "slots": 7, "last_slot": 4}


@pytest.mark.parametrize(
    ("place", "given", "message"),
    [
        (0, ("int64", [7, 64, 3, 64]), "k_ring is int64, expected float32, float16, bfloat16"),
        (0, ("bfloat16", [7, 64, 3]), r"k_ring is of shape \[7, 64, 3\], expected \[any, any, any, any\]"),
        (1, ("bfloat16", [6, 64, 3, 64]), r"v_ring is of shape \[6, 64, 3, 64\], expected \[7, 64, 3, 64\]"),
        (1, ("float32", [7, 64, 3, 64]), "v_ring is float32, expected bfloat16"),
        (2, ("bfloat16", [3, 64, 2, 64]), "k is of shape"),
        (3, ("bfloat16", [2, 64, 3, 64]), "v is of shape"),
        (4, ("int64", [2]), "slot is of shape"),
        (4, ("float32", [1]), "slot is float32, expected int64"),
        (5, ("float32", [2, 12]), "cos_t is of shape"),
        (6, ("float32", [3, 11]), "sin_t is of shape"),
        (7, ("float32", [64, 21]), r"cos_s is of shape \[64, 21\], expected \[64, 20\]"),
        (8, ("something", [64, 20]), "sin_s is another type, expected float32"),
    ],
)
def test_the_plugin_rejects_invalid_tensors_with_a_reason(
    place: int, given: tuple[str, list[int]], message: str
) -> None:
    wrong: Any = tensors()
    wrong[place] = given
    with pytest.raises(ValueError, match=message):
        _native.ring_call(wrong)


def test_the_plugin_accepts_scales_only_with_fp8() -> None:
    with pytest.raises(ValueError, match="9 inputs, expected 11 with a ring of float8"):
        _native.ring_call(tensors("float8 (E4M3)")[:9])
    with pytest.raises(ValueError, match="11 inputs, expected 9"):
        _native.ring_call(tensors() + [("float32", [7, 64, 3])] * 2)
    with pytest.raises(ValueError, match="k_ring is missing"):
        _native.ring_call([])
    odd = tensors()
    odd[5] = odd[6] = ("float32", [3, 33])
    with pytest.raises(ValueError, match="33 temporal pairs, expected at most 32"):
        _native.ring_call(odd)
    long = [(kind, [9, *sizes[1:]] if sizes[0] == 3 else sizes) for kind, sizes in tensors()]
    with pytest.raises(ValueError, match="a chunk of 9 frames, expected at most the ring's 7"):
        _native.ring_call(long)
