"""What happens to sound over WebRTC whose packets are lost: nothing but that they are silent."""

from __future__ import annotations

import logging
from fractions import Fraction

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import RtpPacket
from av.audio.frame import AudioFrame

LOG = logging.getLogger("lipstream")
LONGEST_GAP = 0.5
"""Seconds of packets in a row that are replaced by silence; a longer gap is a pause of the client."""


class ArrivalOrder:
    """Passes each packet of sound on as it arrives, except one that was overtaken by a later one.

    aiortc's own buffer discards five packets for each one that is lost, and delays those that follow by 0.3 s.
    """

    def __init__(self) -> None:
        self._last: int | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """See aiortc's `JitterBuffer`."""
        if self._last is not None and not 0 < (packet.sequence_number - self._last) % 65536 < 32768:
            return False, None
        self._last = packet.sequence_number
        return False, JitterFrame(data=vars(packet)["_data"], timestamp=packet.timestamp)


def pass_on_arrival(receiver: RTCRtpReceiver) -> None:
    """Let a receiver of sound, before it is started, use `ArrivalOrder`; aiortc has no setting for it."""
    name = "_RTCRtpReceiver__jitter_buffer"
    if hasattr(receiver, name):
        setattr(receiver, name, ArrivalOrder())
    else:  # sound is still heard, but more of it is lost
        LOG.warning("this version of aiortc keeps its jitter buffer elsewhere: lost packets of sound take others along")


class Gaps:
    """Finds lost sound by time stamps.

    Args:
        rate: Hz of the silence that replaces it.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._next: Fraction | None = None

    def before(self, frame: AudioFrame) -> int:
        """Samples of silence that are missing before `frame`. Less than half a frame is jitter of the stamps."""
        begins, length = (frame.pts or 0) * (frame.time_base or Fraction(1)), Fraction(frame.samples, frame.sample_rate)
        missing = begins - self._next if self._next is not None else Fraction(0)
        self._next = begins + length
        return round(missing * self._rate) if length / 2 <= missing <= LONGEST_GAP else 0
