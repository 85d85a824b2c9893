"""The ring of the SDK against the independent ring of the models, in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lipstream.backends.ring import Ring
from lipstream.bundle import Geometry
from lipstream.bundle.rope import temporal_angles
from lipstream_models import STUDENTS, KVRing
from lipstream_models import rope as training_rope
from numpy_stream import GEOMETRY


def geometry(window: int, sink: int, chunk: int) -> Geometry:
    return replace(GEOMETRY, chunk_frames=chunk, window=window, sink=sink, **SIZES)


SIZES = {"tokens": 5, "num_heads": 2, "head_dim": 16, "num_layers": 3}


@pytest.mark.parametrize(
    ("window", "sink", "chunk"), [(7, 1, 3), (6, 0, 3), (9, 3, 3), (3, 0, 3), (5, 1, 2), (11, 5, 3)]
)
def test_attended_keys_and_values_through_a_stream(window: int, sink: int, chunk: int) -> None:
    g = geometry(window, sink, chunk)
    config = replace(
        STUDENTS["tiny"],
        dim=32,
        num_heads=2,
        num_layers=3,
        window=window,
        sink=sink,
        chunk_frames=chunk,
        latent_size=(2, 10),
        patch=(1, 2, 2),
    )
    assert (config.tokens, config.head_dim) == (g.tokens, g.head_dim)
    ring, other = Ring(g), KVRing(config)
    rng = np.random.default_rng(window)
    for k in range(12):
        ring.begin(k)
        position = other.begin(k)
        assert (ring.position.slot, ring.position.valid) == (position.slot, position.valid)
        slots = slice(position.slot, position.slot + chunk)
        for _ in range(3):  # passes; the last one's keys and values stay
            new = rng.standard_normal((2, g.num_layers, chunk, g.tokens, g.num_heads, g.head_dim)).astype(np.float32)
            written = zip(ring.attended(), ring.written(), strict=True)
            for layer, ((k_now, v_now), (k_next, v_next)) in enumerate(written):
                k_next[:], v_next[:] = (
                    k_now,
                    v_now,
                )  # as a graph does: the prefix, the chunk's slots replaced
                k_next[slots], v_next[slots] = new[:, layer]
            ring.swap()
            for layer, (keys, values) in enumerate(ring.attended()):
                expected = other.write(layer, *torch.from_numpy(new[:, layer].copy()))
                np.testing.assert_allclose(keys, expected[0].numpy(), atol=2e-6)
                np.testing.assert_array_equal(values, expected[1].numpy())


def test_tables_of_a_chunk_far_into_a_stream() -> None:
    ring, chunk = Ring(geometry(7, 1, 3)), 10_000_000  # 55 days
    ring.begin(chunk)
    frames = torch.arange(3) + 3 * chunk
    expected = training_rope.temporal_angles(frames, 16)
    np.testing.assert_allclose(ring.cos, expected.cos().numpy(), atol=1e-6)
    np.testing.assert_allclose(ring.sin, expected.sin().numpy(), atol=1e-6)
    assert temporal_angles(np.array([1]), 16)[0, 0] == 1.0
