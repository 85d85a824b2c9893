"""The noise of a session: by seed and chunk, as torch draws it for a clip, or the caller's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lipstream.bundle import Bundle
from lipstream.errors import ConfigError, MissingExtraError
from lipstream.session.noise import noise_of

MANIFEST = Bundle.load("tiny").manifest
G = MANIFEST.geometry
SHAPE = (G.latent_channels, G.chunk_frames, *G.latent_size)


def test_by_default_it_is_a_function_of_seed_and_chunk() -> None:
    one, same, other = (noise_of(None, MANIFEST, seed, None) for seed in (5, 5, 6))
    np.testing.assert_array_equal(np.stack(one(3)), np.stack(same(3)))
    assert not np.array_equal(one(3)[0], one(3)[1])
    assert not np.array_equal(one(3)[0], one(4)[0])
    assert not np.array_equal(one(3)[0], other(3)[0])


def test_of_torch_it_is_one_draw_for_the_clip_then_one_a_chunk() -> None:
    """Restated: the released script's order of calls, with the global generator."""
    frames = 2 * G.chunk_frames
    found = noise_of("torch", MANIFEST, 7, frames - 1)
    torch.manual_seed(7)
    whole = torch.randn(1, G.latent_channels, frames, *G.latent_size)
    later = [torch.randn(1, *SHAPE) for _ in range(2)]
    for chunk in (0, 1, 0):  # a chunk may be asked for again
        first, second = found(chunk)
        begun = chunk * G.chunk_frames
        np.testing.assert_array_equal(first, whole[0, :, begun : begun + G.chunk_frames].numpy())
        np.testing.assert_array_equal(second, later[chunk][0].numpy())


def test_a_function_is_used_and_its_results_are_checked() -> None:
    given = [np.full(SHAPE, i, np.float64) for i in (1, 2)]
    found = noise_of(lambda chunk: given, MANIFEST, 0, None)(0)
    assert [x.dtype for x in found] == [np.float32] * 2
    np.testing.assert_array_equal(found[1], given[1])
    wrong: list[Any] = [given[:1], [x[1:] for x in given], [given[0], given[1] * np.nan]]
    for result in wrong:
        with pytest.raises(ConfigError, match="chunk 4"):
            noise_of(lambda chunk, result=result: result, MANIFEST, 0, None)(4)


def test_wrong_options_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong: Any = "numpy"
    with pytest.raises(ConfigError, match="numpy"):
        noise_of(wrong, MANIFEST, 0, None)
    with pytest.raises(ConfigError, match="without an end"):
        noise_of("torch", MANIFEST, 0, None)
    for seed in (-1, 2**64, 0.5):
        with pytest.raises(ConfigError, match="seed"):
            noise_of(None, MANIFEST, seed, None)  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtraError, match="torch"):
        noise_of("torch", MANIFEST, 0, 6)
