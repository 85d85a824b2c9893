"""One live session: frames are generated ahead, queued for the client one every 40 ms, and sent by a writer.

Every queue is bounded by the duration of its frames: generated frames (about a chunk), frames queued for the client (a
second; then pictures are dropped, the oldest first, but never sound), and the session's own audio. A client that reads
too slowly delays no other session, and is disconnected in the end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from ..engine import LipSyncEngine
from ..errors import SlowClientError
from ..media import FPS
from ..metrics import Metrics
from ..session import Frame, PreparedReference, RealtimePlayer
from .protocol import Start

LATE_PICTURES = FPS
"""Queued frames beyond which pictures are dropped."""
TOO_SLOW = 20 * FPS
"""Queued frames beyond which the client is disconnected."""


class Transport(Protocol):
    """Sends to one client. Both methods wait while its buffer is full."""

    async def send_message(self, message: dict[str, Any]) -> None:
        """Send a text message."""

    async def send_frame(self, frame: Frame, at: int, picture: bool) -> None:
        """Send a frame, `at` samples from the session's start; without `picture` only its sound."""


@dataclass
class _Out:
    """A queued frame. Attributes: at: samples before it. picture: whether its picture is still to be sent."""

    frame: Frame
    at: int
    picture: bool = True


class RealtimeSession:
    """See above. Belongs to one event loop.

    Args:
        start: the client's first message. transport: to the client.
    """

    def __init__(
        self,
        engine: LipSyncEngine,
        reference: PreparedReference,
        start: Start,
        transport: Transport,
        metrics: Metrics,
        *,
        max_pending: float = 60.0,
    ) -> None:
        self.size = reference.size
        self._start, self._transport, self._metrics = start, transport, metrics
        self._session = engine.session(reference, idle=start.idle, seed=start.seed, max_pending=max_pending)
        self._player = RealtimePlayer(self._session)
        self._queued: deque[_Out | dict[str, Any]] = deque()
        self._has_queued = asyncio.Event()
        self._at = 0
        self._speaking: bool | None = None
        self._closed = False
        self.last_audio_at = time.monotonic()

    def push(self, data: bytes) -> None:
        """Push sound of the client, int16 little endian; a sample may be cut between two messages.

        Raises:
            BackpressureError, SessionClosedError: see `LipSyncSession.push_audio`.
        """
        self.last_audio_at = time.monotonic()
        self._session.push_audio(data, self._start.sample_rate, channels=self._start.channels)

    def flush(self) -> None:
        """End the segment."""
        self._session.flush()

    def interrupt(self) -> None:
        """Discard everything that was not sent yet, and tell the client where its clock continues."""
        waiting = [out for out in self._queued if isinstance(out, _Out)]
        seconds = self._session.interrupt(unshown=len(waiting))
        if waiting:
            self._at = waiting[0].at
        self._queued = deque(out for out in self._queued if not isinstance(out, _Out))
        self.send_message({"type": "interrupted", "at": self._at, "seconds": seconds})

    def send_message(self, message: dict[str, Any]) -> None:
        """Queue a text message behind the frames that are queued."""
        self._queued.append(message)
        self._has_queued.set()

    async def run(self) -> None:
        """Run until `close`, an error of the session, or until the client is too slow.

        Raises:
            SlowClientError, and what a session raises while it generates.
        """
        clock, writer = asyncio.create_task(self._clock()), asyncio.create_task(self._write())
        try:
            done, _ = await asyncio.wait({clock, writer}, return_when=asyncio.FIRST_COMPLETED)
            if clock in done:
                clock.result()  # raises its error, if it has one
                await writer  # what is queued when the session is closed is still sent
            else:
                writer.result()
        finally:
            self.close()
            for task in (clock, writer):
                task.cancel()
            await asyncio.gather(clock, writer, return_exceptions=True)

    def close(self) -> None:
        """End the session; may be called again."""
        self._closed = True
        self._player.close()
        self._has_queued.set()

    async def _clock(self) -> None:
        """Queue each frame for the client when it is due."""
        async for frame in self._player:
            self._metrics.observe("lateness", self._player.lateness)
            self._queue_frame(frame)

    def _queue_frame(self, frame: Frame) -> None:
        if frame.speaking != self._speaking:
            self._speaking = frame.speaking
            self.send_message({"type": "state", "state": "speaking" if frame.speaking else "idle", "at": self._at})
        self._queued.append(_Out(frame, self._at))
        self._at += len(frame.audio)
        if frame.end_of_segment:
            self.send_message({"type": "segment_end", "segment": frame.segment, "at": self._at})
        frames = [out for out in self._queued if isinstance(out, _Out)]
        if len(frames) > TOO_SLOW:
            raise SlowClientError(
                f"{len(frames) / FPS:.0f} s of sound are queued for the client", fix="read messages as they arrive"
            )
        for out in frames[:-LATE_PICTURES]:
            if out.picture:
                out.picture = False
                self._metrics.count("pictures_dropped")
        self._has_queued.set()

    async def _write(self) -> None:
        """Send what is queued."""
        while not (self._closed and not self._queued):
            if not self._queued:
                self._has_queued.clear()
                await self._has_queued.wait()
                continue
            out = self._queued.popleft()
            if isinstance(out, _Out):
                await self._transport.send_frame(out.frame, out.at, out.picture)
            else:
                await self._transport.send_message(out)
