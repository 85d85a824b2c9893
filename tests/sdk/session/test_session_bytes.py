"""Speech as a stream of bytes, cut anywhere: the frames are those of the same samples as an array."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from lipstream.errors import AudioFormatError, BackpressureError
from lipstream.media import to_int16
from lipstream.session import Frame, LipSyncSession
from numpy_stream import assert_same_frames, noise, open_session, speak

RATE = 16_000


def pcm(samples: int, channels: int = 0, seed: int = 0) -> Any:
    return to_int16(noise(samples, channels, seed))


def pushed(session: LipSyncSession, data: bytes, sizes: list[int], **options: Any) -> list[Frame]:
    """The frames of `data` in pieces of the given sizes, over and over."""
    cuts, turn = [0], 0
    while cuts[-1] < len(data):
        cuts.append(min(len(data), cuts[-1] + sizes[turn % len(sizes)]))
        turn += 1
    taken = sum(session.push_audio(data[a:b], **options) for a, b in pairwise(cuts))
    assert taken == len(data) // 2 // options.get("channels", 1)
    session.flush()
    return list(session)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("sizes", [[1], [1001], [3, 2, 1279]])
def test_a_sample_may_be_cut(kind: Any, sizes: list[int]) -> None:
    sound = pcm(5 * 640)
    found = pushed(open_session(sample_rate=RATE), kind(sound.astype("<i2").tobytes()), sizes)
    assert_same_frames(found, speak(open_session(), sound))


def test_samples_of_several_channels_may_be_cut() -> None:
    sound = pcm(5 * 640, 3)
    found = pushed(open_session(), sound.astype("<i2").tobytes(), [1285], sample_rate=RATE, channels=3)
    assert_same_frames(found, speak(open_session(), sound))


@pytest.mark.parametrize("end", ["flush", "interrupt"])
def test_a_new_segment_begins_with_a_whole_sample(end: str) -> None:
    session, sound = open_session(sample_rate=RATE), pcm(3 * 640, seed=1)
    session.push_audio(pcm(640).tobytes() + b"\x7f")
    getattr(session, end)()
    before = list(session)
    session.push_audio(sound.astype("<i2").tobytes())
    session.flush()
    frames = list(session)
    assert len(before) == (end == "flush")
    np.testing.assert_array_equal(np.concatenate([f.audio for f in frames])[:, 0] * 32768, sound)


def test_an_array_after_a_cut_sample_is_whole() -> None:
    session, sound = open_session(sample_rate=RATE), pcm(2 * 640)
    session.push_audio(sound[:640].tobytes() + b"\x7f")
    session.push_audio(sound[640:])
    session.flush()
    np.testing.assert_array_equal(np.concatenate([f.audio for f in session])[:, 0] * 32768, sound)


def test_refused_bytes_change_nothing() -> None:
    session, sound = open_session(sample_rate=RATE, max_pending=1.0), pcm(20 * 640)
    data = sound.astype("<i2").tobytes()
    session.push_audio(data[:1001])
    with pytest.raises(BackpressureError):
        session.push_audio(bytes(80 * 640))
    with pytest.raises(AudioFormatError, match="0 audio channels"):
        session.push_audio(data, channels=0)
    session.push_audio(data[1001:])
    session.flush()
    assert_same_frames(list(session), speak(open_session(), sound))


def test_without_a_rate_nothing_is_taken() -> None:
    with pytest.raises(AudioFormatError, match="without a sample rate") as caught:
        open_session().push_audio(bytes(10))
    assert "sample_rate=24000" in caught.value.fix


def test_the_rate_is_known_before_the_first_push() -> None:
    session = open_session(idle="reference", sample_rate=24_000)
    idle = next(iter(session))
    assert (len(idle.audio), idle.sample_rate, idle.idle) == (960, 24_000, True)
    session.push_audio(np.zeros(24_000, np.int16))
    spoken = next(frame for frame in session if not frame.idle)
    assert (len(spoken.audio), spoken.sample_rate) == (960, 24_000)
    session.flush()
    session.push_audio(np.zeros(8_000, np.int16), 8_000)  # another segment, another rate
    assert next(frame for frame in session if frame.segment == 1 and not frame.idle).sample_rate == 8_000


@pytest.mark.parametrize("rate", [0, 3_999, 16_000.0, "16000"])
def test_an_invalid_rate_of_a_session(rate: Any) -> None:
    with pytest.raises(AudioFormatError, match="sample rate"):
        open_session(sample_rate=rate)
