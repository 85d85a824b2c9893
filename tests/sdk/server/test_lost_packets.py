"""Sound over WebRTC that is lost or late, without a network."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import numpy as np
import pytest
from aiortc.rtp import RtpPacket
from av.audio.frame import AudioFrame
from lipstream.server.transports.lost_packets import ArrivalOrder, Gaps
from lipstream.server.transports.webrtc import AudioTrack


def test_a_track_of_sound_that_is_late_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy event loop makes every wait longer: so the queue would run over, and sound be lost."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def play() -> list[int]:
        track = AudioTrack()
        for number in range(50):
            track.queue.put((1920 * number, np.full(1920, number, np.int16)))
        return [(await track.recv()).pts for _ in range(100)]

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert asyncio.run(play()) == [960 * number for number in range(100)]
    assert waits == [0.02], "only the last frame is on time"


def test_packets_are_passed_on_unless_they_were_overtaken() -> None:
    order, passed = ArrivalOrder(), []
    for number in (65533, 65534, 0, 65535, 0, 1, 7, 6, 8):  # the count wraps around
        packet = RtpPacket(sequence_number=number, timestamp=number)
        packet._data = b"sound"  # as aiortc's receiver sets it
        lost, frame = order.add(packet)
        assert not lost
        if frame is not None:
            assert frame.data == b"sound"
            passed.append(frame.timestamp)
    assert passed == [65533, 65534, 0, 1, 7, 8]


@pytest.mark.parametrize("rate", [48_000, 8_000])
def test_gaps_are_found_by_the_clock_of_the_codec(rate: int) -> None:
    """20 ms each, of Opus and G.711."""
    gaps = Gaps(48_000)

    def before(at: float) -> int:
        frame = AudioFrame.from_ndarray(np.zeros((1, rate // 50), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, round(at * rate), Fraction(1, rate)
        return gaps.before(frame)

    assert [before(0.0), before(0.02), before(0.06), before(0.08)] == [0, 0, 960, 0]
    assert [before(0.101), before(0.12), before(0.5), before(2.5), before(2.52)] == [0, 0, 17_280, 0, 0]
