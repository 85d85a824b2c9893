"""The ring's arithmetic, against the upstream cache simulated frame by frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lipstream_models import KVRing, RingGeometry
from released_cache import ReleasedCache
from toys import CONFIG

# (window, sink, chunk frames)
geometries = st.builds(
    lambda blocks, sink, chunk: (blocks * chunk + sink, sink, chunk),
    st.integers(1, 4),
    st.integers(0, 7),
    st.integers(1, 4),
)


def test_simulation_gives_the_published_example() -> None:
    cache = ReleasedCache(window=7, sink=1, chunk_frames=3)
    windows = []
    for chunk in range(4):
        windows.append(cache.attended(chunk))
        cache.leave(chunk)
    assert windows == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 3, 4, 5, 6, 7, 8], [0, 6, 7, 8, 9, 10, 11]]


@given(geometries)
def test_ring_attends_what_the_released_cache_attends(sizes: tuple[int, int, int]) -> None:
    """Same frames for every chunk, at the same distances in time from the chunk's own first frame."""
    window, sink, c = sizes
    geometry, cache = RingGeometry(*sizes), ReleasedCache(*sizes)
    slots: list[int | None] = [None] * window
    rolling = window - sink
    phases = set()
    for chunk in range(3 * (rolling // c) + sink + 2):
        at = geometry.at(chunk)
        for i, frame in enumerate(at.kept):
            assert slots[at.slot + i] == frame
            slots[rolling + frame] = frame
        slots[at.slot : at.slot + c] = range(c * chunk, c * (chunk + 1))

        wanted = cache.attended(chunk)
        distance = {frame: i - wanted.index(c * chunk) for i, frame in enumerate(wanted)}
        found = {
            frame: frame + (at.shift if slot >= rolling else 0) - c * chunk
            for slot, frame in enumerate(slots[: at.valid])
            if frame is not None
        }
        assert found == distance
        assert at.valid == len(wanted)
        assert at.anchored == sum(slot >= rolling for slot in range(at.valid))
        phases.add(at.valid)
        cache.leave(chunk)
    assert geometry.phases == sorted(phases)


@pytest.mark.parametrize(("window", "sink", "chunk"), [(8, 1, 3), (3, 1, 3), (1, 1, 3), (9, 1, 3), (3, 3, 3)])
def test_a_window_that_is_not_whole_chunks_is_rejected(window: int, sink: int, chunk: int) -> None:
    with pytest.raises(ValueError, match=rf"window {window} with sink {sink}.*chunks of {chunk}"):
        RingGeometry(window, sink, chunk)


@pytest.mark.parametrize(("sink", "chunk"), [(-1, 3), (1, 0)])
def test_a_negative_sink_or_an_empty_chunk_is_refused(sink: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="at least 0 and 1"):
        RingGeometry(7, sink, chunk)


@pytest.mark.parametrize(("window", "sink"), [(7, 1), (6, 0), (9, 3), (8, 2), (10, 4)])
def test_ring_returns_the_stored_frames(window: int, sink: int) -> None:
    """Every frame's V is its number and its K is rotated by its index, which identify the returned frames."""
    config = replace(CONFIG, window=window, sink=sink)
    ring, cache = KVRing(config, dtype=torch.float64), ReleasedCache(window, sink, 3)
    rate = torch.tensor(1.0, dtype=torch.float64)  # of the first temporal pair, radians a frame
    for chunk in range(7):
        at = ring.begin(chunk)
        own = torch.arange(3 * chunk, 3 * chunk + 3, dtype=torch.float64)
        k = torch.zeros(3, config.tokens, config.num_heads, config.head_dim, dtype=torch.float64)
        k[..., 0], k[..., 1] = (x[:, None, None] for x in ((own * rate).cos(), (own * rate).sin()))
        k[..., -1] = own[:, None, None]
        for layer in range(config.num_layers):
            keys, values = ring.write(layer, k + 0, own[:, None, None, None].expand_as(k))
            wanted = cache.attended(chunk)
            assert sorted(values[:, 0, 0, 0].tolist()) == wanted
            torch.testing.assert_close(values, values[:, :1, :1, :1].expand_as(values), rtol=0, atol=0)
            torch.testing.assert_close(keys[..., -1], values[..., -1], rtol=0, atol=0)
            found = torch.atan2(keys[..., 1], keys[..., 0])[:, 0, 0]
            index = [wanted.index(int(frame)) - wanted.index(3 * chunk) for frame in values[:, 0, 0, 0]]
            expected = (torch.tensor(index) + 3 * chunk) * rate
            torch.testing.assert_close(found.cos(), expected.cos(), rtol=0, atol=1e-6)
            torch.testing.assert_close(found.sin(), expected.sin(), rtol=0, atol=1e-6)
        cache.leave(chunk)
    assert at.valid == window
