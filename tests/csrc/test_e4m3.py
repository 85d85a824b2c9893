"""FP8: the codes of ml_dtypes; and the tensors that the TensorRT plugin accepts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lipstream import _native
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


Tensors = list[tuple[str, list[int]]]


def tensors(ring: str = "bfloat16") -> Tensors:
    e4m3 = ring == "float8 (E4M3)"
    number = "bfloat16" if e4m3 else ring
    found: Tensors = (
        [(ring, [1, 3, 448, 64])] * 2 + [(number, [1, 192, 192])] * 2 + [("float32", [192]), ("int64", [1])]
    )
    found += [("float32", [3, 12])] * 2 + [("float32", [64, 20])] * 2
    return found + [("float32", []), ("float32", [1])] * e4m3


@pytest.mark.parametrize("ring", ["float32", "float16", "bfloat16", "float8 (E4M3)"])
def test_the_plugin_accepts_a_ring(ring: str) -> None:
    found = _native.ring_call(tensors(ring))
    assert found == {"chunk_frames": 3, "temporal_pairs": 12, "slots": 7, "last_slot": 4}


@pytest.mark.parametrize(
    ("place", "given", "message"),
    [
        (0, ("int64", [1, 3, 448, 64]), "k_ring is int64, expected float32, float16, bfloat16"),
        (0, ("bfloat16", [3, 448, 64]), r"k_ring is of shape \[3, 448, 64\], expected \[1, any, any, any\]"),
        (1, ("bfloat16", [1, 3, 384, 64]), r"v_ring is of shape \[1, 3, 384, 64\], expected \[1, 3, 448, 64\]"),
        (1, ("float32", [1, 3, 448, 64]), "v_ring is float32, expected bfloat16"),
        (2, ("bfloat16", [3, 64, 3, 64]), r"k is of shape \[3, 64, 3, 64\], expected \[1, 192, 192\]"),
        (3, ("bfloat16", [1, 128, 192]), "v is of shape"),
        (4, ("float32", [64]), "k_weight is of shape"),
        (4, ("bfloat16", [192]), "k_weight is bfloat16, expected float32"),
        (5, ("int64", [2]), "slot is of shape"),
        (5, ("float32", [1]), "slot is float32, expected int64"),
        (6, ("float32", [2, 12]), "sin_t is of shape"),
        (7, ("float32", [3, 11]), "sin_t is of shape"),
        (8, ("float32", [64, 21]), r"cos_s is of shape \[64, 21\], expected \[any, 20\]"),
        (9, ("something", [64, 20]), "sin_s is another type, expected float32"),
    ],
)
def test_the_plugin_rejects_invalid_tensors_with_a_reason(
    place: int, given: tuple[str, list[int]], message: str
) -> None:
    wrong: Any = tensors()
    wrong[place] = given
    with pytest.raises(ValueError, match=message):
        _native.ring_call(wrong)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({6: [3, 33], 7: [3, 33]}, "33 temporal pairs, expected at most 32"),
        ({0: [1, 3, 450, 64], 1: [1, 3, 450, 64]}, "a ring of 450 rows, a chunk of 3 frames .* of 64 tokens"),
        ({6: [8, 12], 7: [8, 12]}, "a chunk of 8 frames .* and at least the chunk's"),
        ({6: [0, 12], 7: [0, 12]}, "a chunk of 0 frames"),
        ({0: [1, 3, 448, 63], 1: [1, 3, 448, 63]}, "3 heads of 63, expected up to 65535 of an even size up to 4096"),
        ({10: [2]}, r"k_scale is of shape \[2\], expected \[1\]"),
    ],
)
def test_the_plugin_rejects_sizes_that_do_not_fit_together(changed: dict[int, list[int]], message: str) -> None:
    wrong = tensors("float8 (E4M3)")
    for place, sizes in changed.items():
        wrong[place] = (wrong[place][0], sizes)
    with pytest.raises(ValueError, match=message):
        _native.ring_call(wrong)


def test_the_plugin_accepts_scales_only_with_fp8() -> None:
    with pytest.raises(ValueError, match="10 inputs, expected 12 with a ring of float8"):
        _native.ring_call(tensors("float8 (E4M3)")[:10])
    with pytest.raises(ValueError, match="12 inputs, expected 10"):
        _native.ring_call(tensors() + [("float32", [])] * 2)
    with pytest.raises(ValueError, match="k_ring is missing"):
        _native.ring_call([])
