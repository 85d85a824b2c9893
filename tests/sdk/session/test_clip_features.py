"""Features of a file's whole sound, in windows where it is long."""

from __future__ import annotations

import numpy as np
import pytest
from lipstream.session.clip_features import ClipFeatures
from numpy.typing import NDArray

STEP, LONGEST, MARGIN = 4, 20, 3
Array = NDArray[np.float32]


class Encoder:
    """The features of a frame are its position in the samples that it is called with, and the sum of its samples."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, samples: Array, frames: int) -> Array:
        self.lengths.append(len(samples))
        padded = np.pad(samples, (0, STEP * frames - len(samples))).reshape(-1, STEP)
        return np.stack([np.arange(len(padded)), padded.sum(1)], axis=1).astype(np.float32)


def sound(samples: int, piece: int = 7) -> tuple[Array, list[Array]]:
    whole = np.arange(samples, dtype=np.float32)
    return whole, [whole[i : i + piece] for i in range(0, samples, piece)]


def opened(samples: int) -> tuple[ClipFeatures, Encoder, Array]:
    encoder = Encoder()
    whole, pieces = sound(samples)
    return ClipFeatures(encoder, pieces, STEP, longest=LONGEST, margin=MARGIN), encoder, whole


@pytest.mark.parametrize("samples", [1, 3, STEP * 12 + 1, STEP * LONGEST])
def test_a_short_clip_is_one_call_with_every_sample(samples: int) -> None:
    features, encoder, whole = opened(samples)
    frames = -(-samples // STEP)
    found = features(-3, frames + 8)
    assert encoder.lengths == [samples]
    wanted = Encoder()(whole, frames)
    np.testing.assert_array_equal(found[3 : 3 + frames], wanted)
    np.testing.assert_array_equal(found[:3], np.repeat(wanted[:1], 3, 0))
    np.testing.assert_array_equal(found[3 + frames :], np.repeat(wanted[-1:], 5, 0))


def test_a_clip_may_have_more_frames_than_sound() -> None:
    whole, pieces = sound(3 * STEP + 1)
    encoder = Encoder()
    features = ClipFeatures(encoder, pieces, STEP, longest=LONGEST, margin=MARGIN, least=9)
    np.testing.assert_array_equal(features(-3, 15)[3:12], Encoder()(whole, 9))
    assert encoder.lengths == [3 * STEP + 1]


@pytest.mark.parametrize("samples", [STEP * LONGEST + 1, STEP * (LONGEST + 1), STEP * 61 + 2, STEP * 200])
def test_a_long_clip_is_windows_that_overlap(samples: int) -> None:
    """Each frame has the samples of its time, and `MARGIN` frames of sound on either side where there are any."""
    features, encoder, whole = opened(samples)
    frames = -(-samples // STEP)
    chunks = [features(first, 6) for first in range(0, frames, 6)]
    found = np.concatenate(chunks)[:frames]
    np.testing.assert_array_equal(found[:, 1], Encoder()(whole, frames)[:, 1])
    begun = np.arange(frames) - found[:, 0]  # first frame of the window of each
    assert np.all((found[:, 0] >= MARGIN) | (begun == 0))
    ends = np.minimum(begun + LONGEST, frames)
    assert np.all((ends - np.arange(frames) > MARGIN) | (ends == frames))
    assert max(encoder.lengths) <= STEP * LONGEST
    again = features(6 * (len(chunks) - 1), 6)  # a chunk that was started ahead may be asked for again
    np.testing.assert_array_equal(again, chunks[-1])


def test_memory_does_not_grow_with_the_clip() -> None:
    encoder = Encoder()
    pieces = (np.ones(STEP, np.float32) for _ in range(5000))
    features = ClipFeatures(encoder, pieces, STEP, longest=LONGEST, margin=MARGIN)
    for first in range(0, 5000, 5):
        features(first, 5)
        assert len(features._samples) <= STEP * (LONGEST + 1)
        assert features._features is not None
        assert len(features._features) <= LONGEST + 50
    assert sum(encoder.lengths) < 5000 * STEP * LONGEST / (LONGEST - 2 * MARGIN) + 2 * STEP * LONGEST
