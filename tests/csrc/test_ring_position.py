"""`ring_position` against a simulated list of frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lipstream._native import RingPosition, ring_position

INT64_MAX = 2**63 - 1


def attended(chunk: int, window: int, sink: int, c: int) -> set[int]:
    """Stream indices of the frames that `chunk` attends to: all while they fit, else the sink and the last frames."""
    end = c * (chunk + 1)
    return set(range(end)) if end <= window else {*range(sink), *range(end - (window - sink), end)}


def follow(slots: list[int | None], p: RingPosition, rolling: int, c: int) -> None:
    """Apply a ring position to a list of frame indices."""
    for i in range(p.keep_count):
        slots[rolling + p.keep_first + i] = slots[p.keep_slot + i]
    for i in range(c):
        slots[p.slot + i] = p.chunk * c + i


@given(c=st.integers(1, 5), blocks=st.integers(1, 5), sink=st.integers(0, 12), chunks=st.integers(1, 30))
def test_prefix_holds_the_window(c: int, blocks: int, sink: int, chunks: int) -> None:
    rolling = c * blocks
    window = rolling + sink
    slots: list[int | None] = [None] * window
    for chunk in range(chunks):
        p = ring_position(chunk, window, sink, c)
        follow(slots, p, rolling, c)
        assert p.chunk == chunk
        prefix = slots[: p.valid]
        assert set(prefix) == attended(chunk, window, sink, c)
        assert len(set(prefix)) == p.valid
        assert slots[rolling : rolling + p.anchored] == list(range(p.anchored))
        # The released model numbers the window 0, 1, 2, ...: every distance to the chunk's last frame must be as there.
        number = {frame: i for i, frame in enumerate(sorted(attended(chunk, window, sink, c)))}
        last = c * (chunk + 1) - 1
        for slot, frame in enumerate(prefix):
            assert frame is not None
            rotated_at = frame + p.shift if slot >= rolling else frame
            assert last - rotated_at == number[last] - number[frame]
        assert (p.keep_slot == -1) == (p.keep_count == 0)


def test_released_model() -> None:
    fields = ("slot", "valid", "anchored", "shift", "keep_slot", "keep_first", "keep_count")
    table = [[getattr(ring_position(k, 7, 1), name) for name in fields] for k in range(5)]
    assert table == [
        [0, 3, 0, 0, -1, 0, 0],
        [3, 6, 0, 0, -1, 0, 0],
        [0, 7, 1, 2, 0, 0, 1],
        [3, 7, 1, 5, -1, 0, 0],
        [0, 7, 1, 8, -1, 0, 0],
    ]


@given(chunk=st.integers(10, INT64_MAX // 3 - 1))
def test_any_chunk_of_a_long_stream(chunk: int) -> None:
    p = ring_position(chunk, 14, 8)
    assert (p.slot, p.valid, p.anchored, p.shift) == (3 * (chunk % 2), 14, 8, 3 * (chunk + 1) - 14)
    assert p.keep_count == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 1), "rolling part .window 8 without sink 1. is not a whole number of chunks, expected .* 3 frames"),
        ((0, 1, 1), "is not a whole number of chunks"),
        ((0, 0, 3), "is not a whole number of chunks"),
        ((0, -(2**63), 2**62), "is not a whole number of chunks"),
        ((0, 6, -3), "sink is -3 frames, expected 0 or more"),
        ((-1, 7, 1), "chunk is -1, expected 0 to"),
        ((INT64_MAX // 3, 7, 1), "chunk is 3074457345618258602, expected 0 to 3074457345618258601"),
        ((0, 7, 1, 0), "chunk_frames is 0, expected 1 or more"),
    ],
)
def test_invalid_geometries_and_chunks_are_rejected(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ring_position(*arguments)


def test_types() -> None:
    with pytest.raises(TypeError):
        ring_position(0.5, 7, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ring_position(2**63, 7, 1)
    p = ring_position(chunk=2, window=7, sink=1, chunk_frames=3)
    with pytest.raises(AttributeError):
        p.slot = 0  # type: ignore[misc]
    assert repr(p) == (
        "RingPosition(chunk=2, slot=0, valid=7, anchored=1, shift=2, keep_slot=0, keep_first=0, keep_count=1)"
    )
