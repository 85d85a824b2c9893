"""Invalid arguments of the CPU functions: the type and the message of the error, and nothing is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lipstream import _native

F, T, H, D, C, SINK, TIME = 7, 4, 2, 12, 3, 1, 2
ROLLING = F - SINK
Arguments = dict[str, Any]


def arguments(function: str) -> Arguments:
    """Valid arguments of `function`, by name."""
    k_ring, v_ring = np.ones((2, F, T, H, D), np.float32)
    sink_base = np.full((SINK, T, H, D), 2, np.float32)
    time, space = np.zeros((C, TIME), np.float32), np.zeros((T, D // 2 - TIME), np.float32)
    if function == "ring_write":
        k, v = np.full((2, C, T, H, D), 3, np.float32)
        tables = {"cos_t": time, "sin_t": time.copy(), "cos_s": space, "sin_s": space.copy()}
        return {"k_ring": k_ring, "v_ring": v_ring, "k": k, "v": v, "slot": 3, **tables, "threads": 1}
    if function == "ring_keep":
        slots = {"slot": 0, "rolling": ROLLING, "first": 0, "count": 1}
        return {"k_ring": k_ring, "v_ring": v_ring, "sink_base": sink_base, **slots}
    angles = {"cos": time[0].copy(), "sin": time[0].copy()}
    return {"k_ring": k_ring, "sink_base": sink_base, "rolling": ROLLING, "count": 1, **angles, "threads": 1}


def written(given: Arguments) -> list[bytes]:
    return [x.tobytes() for name in ("k_ring", "v_ring", "sink_base") if isinstance(x := given.get(name), np.ndarray)]


@pytest.mark.parametrize("function", ["ring_write", "ring_keep", "ring_anchor"])
def test_valid_arguments_are_accepted(function: str) -> None:
    given = arguments(function)
    before = written(given)
    getattr(_native, function)(**given)
    assert written(given) != before


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


def read_only(*shape: int) -> Any:
    array = zeros(*shape)
    array.flags.writeable = False
    return array


def unaligned(*shape: int) -> Any:
    return np.frombuffer(bytearray(4 * int(np.prod(shape)) + 1), np.uint8)[1:].view(np.float32).reshape(shape)


RING = (F, T, H, D)
BAD: list[tuple[str, Arguments, type[Exception], str]] = [
    ("ring_write", {"k_ring": [1.0]}, TypeError, "k_ring is a list, expected a numpy array"),
    ("ring_write", {"k": None}, TypeError, "k is a NoneType, expected a numpy array"),
    ("ring_write", {"k_ring": zeros(F, T, H)}, ValueError, r"k_ring is of shape \(7, 4, 2\), expected \(any, any"),
    ("ring_write", {"k_ring": zeros(0, T, H, D)}, ValueError, "expected no empty dimension"),
    ("ring_write", {"v_ring": zeros(F, T, H, 10)}, ValueError, r"v_ring is .*10\), expected \(7, 4, 2, 12\)"),
    ("ring_write", {"k": zeros(C, T, H + 1, D)}, ValueError, r"k is of shape .* expected \(any, 4, 2, 12\)"),
    ("ring_write", {"v": zeros(C + 1, T, H, D)}, ValueError, r"v is of shape .* expected \(3, 4, 2, 12\)"),
    ("ring_write", {"k": zeros(0, T, H, D), "v": zeros(0, T, H, D), "cos_t": zeros(0, 2), "sin_t": zeros(0, 2)},
     ValueError, "expected 1 frame or more"),
    ("ring_write", {"cos_t": zeros(C, 7)}, ValueError, "7 temporal pairs, expected 0 to 6"),
    ("ring_write", {"cos_t": zeros(C)}, ValueError, r"cos_t is of shape \(3\), expected \(3, any\)"),
    ("ring_write", {"sin_t": zeros(C, TIME + 1)}, ValueError, r"sin_t is .* expected \(3, 2\)"),
    ("ring_write", {"cos_s": zeros(T, 5)}, ValueError, r"cos_s is .* expected \(4, 4\)"),
    ("ring_write", {"sin_s": zeros(T, 4, dtype=np.float64)}, TypeError, "sin_s is float64, expected float32"),
    ("ring_write", {"k": zeros(C, T, H, D, dtype=np.float64)}, TypeError, "float32 and float64, expected one dtype"),
    ("ring_write", {"v": zeros(C, T, H, D, dtype=np.uint16)}, TypeError, "float32 and uint16, expected one dtype"),
    ("ring_write", {"k": zeros(C, T, H, D, dtype=">f4")}, TypeError, "float32 and >f4, expected one dtype"),
    ("ring_write", {"k_ring": zeros(*RING, dtype=np.float16), "v_ring": zeros(*RING, dtype=np.float16),
                    "k": zeros(C, T, H, D, dtype=np.float16), "v": zeros(C, T, H, D, dtype=np.float16)},
     TypeError, "float16, expected float32, or uint16"),
    ("ring_write", {"k": zeros(T, C, H, D).swapaxes(0, 1)}, ValueError, "k is strided or unaligned, expected C-cont"),
    ("ring_write", {"k": unaligned(C, T, H, D)}, ValueError, "k is strided or unaligned"),
    ("ring_write", {"v_ring": read_only(*RING)}, ValueError, "v_ring is read-only, expected a writable array"),
    ("ring_write", {"slot": 5}, ValueError, "slot is 5, expected the 3 frames from there on to lie within 0 to 7"),
    ("ring_write", {"slot": -1}, ValueError, "slot is -1"),
    ("ring_write", {"slot": 2**63 - 1}, ValueError, "slot is 9223372036854775807"),
    ("ring_write", {"threads": -1}, ValueError, "threads is -1, expected 1 or more, or 0"),
    ("ring_keep", {"rolling": 8}, ValueError, "rolling is 8"),
    ("ring_keep", {"rolling": 5}, ValueError, r"sink_base is .* expected \(2, 4, 2, 12\)"),
    ("ring_keep", {"slot": 6}, ValueError, "slot is 6, expected the 1 frames from there on to lie within 0 to 6"),
    ("ring_keep", {"first": 1}, ValueError, "first is 1, expected the 1 frames"),
    ("ring_keep", {"count": 2}, ValueError, "expected the 2 frames"),
    ("ring_keep", {"count": -1}, ValueError, "count is -1 frames, expected 0 or more"),
    ("ring_keep", {"sink_base": read_only(SINK, T, H, D)}, ValueError, "sink_base is read-only"),
    ("ring_anchor", {"k_ring": read_only(*RING)}, ValueError, "k_ring is read-only"),
    ("ring_anchor", {"count": 2}, ValueError, "rolling is 6, expected the 2 frames"),
    ("ring_anchor", {"count": -1}, ValueError, "count is -1"),
    ("ring_anchor", {"rolling": -1}, ValueError, "rolling is -1"),
    ("ring_anchor", {"cos": zeros(7), "sin": zeros(7)}, ValueError, "7 temporal pairs, expected 0 to 6"),
    ("ring_anchor", {"sin": zeros(3)}, ValueError, r"sin is of shape \(3\), expected \(2\)"),
    ("ring_anchor", {"sink_base": zeros(SINK, T, H, D, dtype=np.uint16)}, TypeError, "expected one dtype"),
    ("ring_anchor", {"threads": -5}, ValueError, "threads is -5"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "wrong", "error", "message"), BAD)
def test_invalid_arguments_are_rejected(function: str, wrong: Arguments, error: type[Exception], message: str) -> None:
    given = {**arguments(function), **wrong}
    before = written(given)
    with pytest.raises(error, match=message):
        getattr(_native, function)(**given)
    assert written(given) == before


def test_an_odd_head_size_is_rejected() -> None:
    given = arguments("ring_write")
    for name, frames in (("k_ring", F), ("v_ring", F), ("k", C), ("v", C)):
        given[name] = zeros(frames, T, H, 5)
    with pytest.raises(ValueError, match="head size is 5, expected an even number"):
        _native.ring_write(**given)


def test_overlapping_arrays_are_rejected() -> None:
    given = arguments("ring_write")
    for wrong in ({"v_ring": given["k_ring"]}, {"k": given["k_ring"][2:5]}, {"v": given["k_ring"][3:6]}):
        with pytest.raises(ValueError, match="shares memory with another"):
            _native.ring_write(**{**given, **wrong})
    given = arguments("ring_keep")
    with pytest.raises(ValueError, match="shares memory with another"):
        _native.ring_keep(**{**given, "sink_base": given["v_ring"][6:]})


def test_keeping_no_frames_is_accepted() -> None:
    """The values of `ring_position` for no frames; a ring without a sink has an empty `sink_base`."""
    given = arguments("ring_keep")
    before = written(given)
    _native.ring_keep(**{**given, "slot": -1, "count": 0})
    _native.ring_keep(**{**given, "sink_base": zeros(0, T, H, D), "rolling": F, "slot": -1, "count": 0})
    assert written(given) == before
