"""Idle frames of a session, its `speaking` flag, metrics and log."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from lipstream import LipSyncEngine, RealtimePlayer
from lipstream.errors import ConfigError
from lipstream.session import Frame, Idle, LipSyncSession
from numpy_stream import NumberedReference, OpenSession, noise, open_session

RATE, FRAME = 16_000, 640


def take(session: LipSyncSession, count: int) -> list[Frame]:
    return list(itertools.islice(session, count))


@pytest.mark.parametrize("idle", ["closed", "reference"])
def test_idle_frames_without_audio(idle: Idle) -> None:
    session = open_session(idle=idle)
    frames = take(session, 40)
    assert [frame.index for frame in frames] == list(range(40))
    assert all(frame.idle and not frame.speaking and frame.segment == 0 for frame in frames)
    assert all(frame.audio.shape == (FRAME, 1) and not frame.audio.any() for frame in frames)
    assert {frame.generated for frame in frames} == ({1.0} if idle == "closed" else {0.0})
    if idle == "reference":
        assert [int(frame.image[0, 0, 0]) for frame in frames] == list(range(40))


def test_idle_is_spoken_silence() -> None:
    """With "closed" the pictures are those that pushed silence gives."""
    pushed = open_session()
    pushed.push_audio(np.zeros(60 * FRAME, np.float32), RATE)
    wanted = take(pushed, 40)
    for found, frame in zip(take(open_session(idle="closed"), 40), wanted, strict=True):
        np.testing.assert_array_equal(found.image, frame.image)


@pytest.mark.parametrize("idle", ["closed", "reference"])
@pytest.mark.parametrize("before", [0, 1, 7, 12, 30])
def test_speech_replaces_idle_frames_at_once(idle: Idle, before: int) -> None:
    """Idle frames not taken are replaced; every sample is returned once; the picture never jumps."""
    opened = OpenSession(idle=idle)
    session = opened.session
    frames = take(session, before)
    sound = noise(50 * FRAME)
    session.push_audio(sound, RATE)
    session.flush()
    frames += take(session, 50 + 30)
    speech = [frame for frame in frames if not frame.idle]
    assert [frame.idle for frame in frames] == [True] * before + [False] * 50 + [True] * 30
    np.testing.assert_array_equal(np.concatenate([frame.audio for frame in speech])[:, 0], sound)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert speech[-1].end_of_segment
    assert {frame.segment for frame in speech} == {0}
    assert all(frame.segment == 1 for frame in frames[before + 50 :])


def test_fades_to_and_from_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(idle="reference")
    take(session, 10)
    session.push_audio(noise(40 * FRAME), RATE)
    session.flush()
    frames = take(session, 40 + 20)
    shares = [frame.generated for frame in frames]
    assert shares[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert set(shares[5:40]) == {1.0}
    assert shares[40:52] == pytest.approx([1 - i / 12 for i in range(1, 13)])
    assert set(shares[52:]) == {0.0}
    # Mixed from the same speech without a fade, and the reference, whose frame i has grey level i.
    monkeypatch.setattr("lipstream.session.idle._FADE", 0)
    plain = open_session(idle="reference")
    take(plain, 10)
    plain.push_audio(noise(40 * FRAME), RATE)
    for i, frame in enumerate(take(plain, 6)):
        mixed = shares[i] * frame.image.astype(float) + (1 - shares[i]) * (10 + i)
        assert np.abs(frames[i].image - mixed).max() <= 1  # both are rounded


def test_speech_during_a_fade_continues_from_its_level() -> None:
    session = open_session(idle="reference")
    session.push_audio(noise(40 * FRAME), RATE)
    session.flush()
    frames = take(session, 44)
    assert frames[-1].generated == pytest.approx(1 - 4 / 12)
    session.push_audio(noise(40 * FRAME, seed=1), RATE)
    assert take(session, 1)[0].generated == pytest.approx(1 - 4 / 12 + 1 / 6)


def test_a_gap_within_a_segment_is_idle_and_loses_nothing() -> None:
    session = open_session(idle="closed")
    sound = noise(60 * FRAME)
    session.push_audio(sound[: 30 * FRAME], RATE)
    frames = take(session, 60)
    assert sum(frame.idle for frame in frames) > 20
    session.push_audio(sound[30 * FRAME :], RATE)
    session.flush()
    frames += take(session, 60)
    speech = [frame.audio[:, 0] for frame in frames if not frame.idle]
    np.testing.assert_array_equal(np.concatenate(speech), sound)


def test_idle_before_the_first_face_is_the_reference() -> None:
    session = OpenSession(idle="closed", reference=NumberedReference(faceless=20)).session
    frames = take(session, 40)
    assert [frame.bypassed for frame in frames] == [True] * 20 + [False] * 20


def test_an_interrupt_falls_back_to_idle() -> None:
    session = open_session(idle="closed")
    session.push_audio(noise(100 * FRAME), RATE)
    frames = take(session, 15)
    assert session.interrupt() == 15 / 25
    frames += take(session, 15)
    assert [frame.idle for frame in frames] == [False] * 15 + [True] * 15
    assert [frame.index for frame in frames] == list(range(30))


@pytest.mark.parametrize("idle", ["closed", "reference"])
def test_idle_frames_that_a_player_generated_ahead_are_replaced_by_speech(idle: Idle) -> None:
    async def main() -> list[Frame]:
        session = open_session(idle=idle)
        player = RealtimePlayer(session, paced=False)
        played = aiter(player)
        frames = [await anext(played) for _ in range(13)]  # more are ready by now
        session.push_audio(noise(30 * FRAME), RATE)
        session.flush()
        frames += [await anext(played) for _ in range(30)]
        player.close()
        assert [frame async for frame in played] == []
        return frames

    frames = asyncio.run(asyncio.wait_for(main(), 60))
    assert [frame.index for frame in frames] == list(range(43))
    assert [frame.idle for frame in frames] == [True] * 13 + [False] * 30


def test_an_interrupt_takes_back_what_was_not_shown() -> None:
    session = open_session(idle="reference")
    session.push_audio(noise(100 * FRAME), RATE)
    take(session, 30)
    assert session.interrupt(unshown=10) == 20 / 25
    frame = take(session, 20)[-1]
    assert frame.index == 39
    assert int(frame.image[0, 0, 0]) == 39  # the picture went back as far


def test_idle_sound_has_the_rate_and_channels_of_the_last_speech() -> None:
    session = open_session(idle="closed")
    session.push_audio(noise(44_100, channels=2), 44_100)
    session.flush()
    last = take(session, 40)[-1]
    assert last.idle
    assert last.audio.shape == (1764, 2)


def test_speaking_is_sound_and_a_third_of_a_second_after_it() -> None:
    sound = np.zeros(60 * FRAME, np.float32)
    sound[20 * FRAME : 30 * FRAME] = noise(10 * FRAME)
    session = open_session()
    session.push_audio(sound, RATE)
    session.flush()
    speaking = [frame.speaking for frame in session]
    assert speaking == [False] * 20 + [True] * (10 + 7) + [False] * 23
    assert not any(frame.speaking for frame in _said(0.002 * noise(20 * FRAME)))


def _said(sound: Any) -> list[Frame]:
    session = open_session()
    session.push_audio(sound, RATE)
    session.flush()
    return list(session)


def test_other_values_of_idle_are_rejected() -> None:
    with pytest.raises(ConfigError, match="closed"):
        open_session(idle="asleep")


class RecordedMetrics:
    """Metrics that record all calls."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] += by

    def observe(self, name: str, seconds: float) -> None:
        self.seconds[name].append(seconds)


def test_metrics_and_log(speaker: Any, caplog: pytest.LogCaptureFixture) -> None:
    metrics = RecordedMetrics()
    engine = LipSyncEngine.load("tiny", threads=1, metrics=metrics)
    with caplog.at_level(logging.DEBUG, "lipstream"):
        assert 0 < engine.warmup(2) < 60
        with engine.session(speaker) as session:
            session.push_audio(noise(25 * FRAME), RATE)
            session.flush()
            assert len(list(session)) == 25
            session.push_audio(noise(25 * FRAME), RATE)
            next(iter(session))
            session.interrupt()
            session.push_audio(noise(25 * FRAME), RATE)
            next(iter(session))
    assert metrics.counts["sessions_opened"] == metrics.counts["sessions_closed"] == metrics.counts["interrupts"] == 1
    assert metrics.counts["chunks"] == len(metrics.seconds["chunk"]) >= 5
    assert len(metrics.seconds["first_frame"]) == 3
    assert len(metrics.seconds["interrupt"]) == 1
    assert metrics.seconds["queue"][0] == pytest.approx(1.0)
    said = [record.getMessage() for record in caplog.records if record.name == "lipstream"]
    assert [text.split()[0] for text in said] == ["warm", "session", "session"]
