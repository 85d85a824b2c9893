"""The sound of one segment against plain indexing into the whole signal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.bundle import AudioGeometry
from lipstream.errors import AudioFormatError
from lipstream.media import StreamResampler, to_float
from lipstream.session.segment import SegmentAudio
from numpy.typing import NDArray
from scipy.signal import resample_poly

Array = NDArray[np.float32]
GEOMETRY = AudioGeometry(sample_rate=16_000, samples_per_frame=640, lookback=1000, lookahead=530, features=1)


def resampled(samples: Array, rate: int) -> Array:
    resampler = StreamResampler(rate, GEOMETRY.sample_rate)
    return np.concatenate([resampler.push(samples), resampler.flush()])


def at(signal: Array, start: int, end: int) -> Array:
    """`signal[start:end]` with silence where there is none, sample by sample."""
    return np.array([signal[i] if 0 <= i < len(signal) else 0 for i in range(start, end)], np.float32)


@settings(max_examples=60)
@given(
    rate=st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000, 4001]),
    length=st.integers(1, 12_000),
    channels=st.integers(1, 3),
    data=st.data(),
)
def test_windows_and_frames_are_slices_of_the_whole(rate: int, length: int, channels: int, data: st.DataObject) -> None:
    pcm = np.random.default_rng(length).random((length, channels), np.float32) - np.float32(0.5)
    audio = SegmentAudio(GEOMETRY, rate)
    cuts = data.draw(st.lists(st.integers(0, length), max_size=6).map(sorted))
    for piece in np.split(pcm, cuts):
        audio.push(to_float(piece), rate)
    audio.end()
    whole = resampled(pcm, rate)
    assert audio.frames == -(-length * 25 // rate)
    forgotten = 0
    for _ in range(4):
        first = data.draw(st.integers(forgotten, audio.frames + 2))
        start = (first - 3) * 640 - 1000 if forgotten == 0 else first * 640 - 1000
        frames = data.draw(st.integers(0, 5))
        window = audio.window(first - 3, frames + 3) if forgotten == 0 else audio.window(first, frames)
        np.testing.assert_array_equal(window, at(whole, start, (first + frames) * 640 + 530))
        if first < audio.frames:
            found, wanted = audio.of_frame(first), pcm[first * rate // 25 : (first + 1) * rate // 25]
            np.testing.assert_array_equal(found[: len(wanted)], wanted)
            assert len(found) == (first + 1) * rate // 25 - first * rate // 25
            assert not found[len(wanted) :].any()
        audio.forget(first)
        forgotten = max(forgotten, first)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_the_models_audio_equals_that_of_an_independent_resampler(rate: int) -> None:
    t = np.arange(rate) / rate
    pcm = (0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * 1500 * t + 1)).astype(np.float32)
    audio = SegmentAudio(GEOMETRY, rate)
    audio.push(to_float(pcm), rate)
    audio.end()
    expected = resample_poly(pcm, 16_000, rate)
    window = audio.window(5, 10)
    assert np.abs(window - expected[5 * 640 - 1000 : 15 * 640 + 530]).max() < 2e-3


@settings(max_examples=40)
@given(
    rate=st.sampled_from([8000, 16_000, 44_100]),
    pieces=st.lists(st.integers(0, 3000), max_size=10),
    n=st.integers(1, 9),
)
def test_ready_means_that_the_window_is_complete(rate: int, pieces: list[int], n: int) -> None:
    pcm = np.random.default_rng(1).random(sum(pieces) + 30_000, np.float32)
    audio, whole = SegmentAudio(GEOMETRY, rate), SegmentAudio(GEOMETRY, rate)
    whole.push(to_float(pcm), rate)
    pushed = 0
    for piece in pieces:
        audio.push(to_float(pcm[pushed : pushed + piece]), rate)
        pushed += piece
    assert audio.frames == pushed * 25 // rate
    if audio.ready(n):
        assert audio.frames >= n
        np.testing.assert_array_equal(audio.window(0, n), whole.window(0, n))
    else:
        assert pushed < (n / 25 + 530 / 16_000 + 0.03) * rate
    audio.end()
    assert audio.ready(n)


def test_mono_is_the_mean_of_the_channels() -> None:
    pcm = np.random.default_rng(0).random((6400, 2), np.float32) - np.float32(0.5)
    stereo, mono = SegmentAudio(GEOMETRY, 16_000), SegmentAudio(GEOMETRY, 16_000)
    stereo.push(to_float(pcm), 16_000)
    mono.push(to_float(pcm.mean(axis=1)), 16_000)
    stereo.end()
    mono.end()
    np.testing.assert_allclose(stereo.window(0, 10), mono.window(0, 10), atol=1e-6)
    assert stereo.of_frame(3).shape == (640, 2)


def test_another_rate_and_another_number_of_channels_are_rejected() -> None:
    audio = SegmentAudio(GEOMETRY, 16_000)
    audio.push(to_float(np.zeros(100, np.int16)), 16_000)
    with pytest.raises(AudioFormatError, match="8000"):
        audio.push(to_float(np.zeros(100, np.int16)), 8000)
    with pytest.raises(AudioFormatError, match="channels"):
        audio.push(to_float(np.zeros((100, 2), np.int16)), 16_000)
    assert audio.frames == 0
    with pytest.raises(AudioFormatError, match="rate"):
        SegmentAudio(GEOMETRY, 10)


def test_dropped_samples_are_released() -> None:
    audio = SegmentAudio(GEOMETRY, 16_000)
    for frame in range(500):
        audio.push(to_float(np.zeros(640, np.float32)), 16_000)
        audio.forget(frame)
    assert sum(map(len, audio._pushed._pieces)) <= 2 * 640
    assert sum(map(len, audio._resampled._pieces)) <= 640 + 1000 + 320 + 640
