"""One live session: a thread makes frames ahead, a clock lets one out every 40 ms, a writer sends them.

Three queues, each bounded by the time that its frames last: made frames (a chunk), frames on their way to the client (a
second; then pictures are left out, the oldest first, but never sound), and the session's own audio. So a client that
does not read costs nobody else anything, and is let go in the end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..engine import LipSyncEngine
from ..errors import ProtocolError, SlowClientError
from ..media import FPS
from ..metrics import Metrics
from ..session import Frame, PreparedReference, RealtimePlayer
from .protocol import Start

LATE_PICTURES = FPS
"""Frames on their way to the client from which on pictures are left out."""
TOO_SLOW = 20 * FPS
"""Frames on their way from which on the client is let go."""


class Transport(Protocol):
    """To one client. Both wait while its buffer is full."""

    async def send_message(self, message: dict[str, Any]) -> None:
        """A text message."""

    async def send_frame(self, frame: Frame, at: int, picture: bool) -> None:
        """A frame, `at` samples from the session's begin; its sound alone without `picture`."""


@dataclass
class _Out:
    """A frame on its way. Attributes: at: samples before it. picture: whether its picture is still to be sent."""

    frame: Frame
    at: int
    picture: bool = True


class RealtimeSession:
    """See above. All methods but the thread's own are for one event loop.

    Args:
        start: what the client asked for. transport: to it.
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
        self._on_the_way: deque[_Out | dict[str, Any]] = deque()
        self._something_to_send = asyncio.Event()
        self._at = 0
        self._speaking: bool | None = None
        self._closed = False
        self.last_audio_at = time.monotonic()

    def push(self, data: bytes) -> None:
        """Sound of the client.

        Raises:
            ProtocolError: no whole samples. BackpressureError, SessionClosedError: see `LipSyncSession.push_audio`.
        """
        channels = self._start.channels
        if len(data) % (2 * channels):
            raise ProtocolError(f"{len(data)} bytes of sound", expected=f"int16 samples of {channels} channels")
        self.last_audio_at = time.monotonic()
        self._session.push_audio(np.frombuffer(data, "<i2").reshape(-1, channels), self._start.sample_rate)

    def flush(self) -> None:
        """End the segment."""
        self._session.flush()

    def interrupt(self) -> None:
        """Forget all that was not sent yet. The client is told where its clock goes on."""
        waiting = [out for out in self._on_the_way if isinstance(out, _Out)]
        seconds = self._session.interrupt(unshown=len(waiting))
        if waiting:
            self._at = waiting[0].at
        self._on_the_way = deque(out for out in self._on_the_way if not isinstance(out, _Out))
        self.send_message({"type": "interrupted", "at": self._at, "seconds": seconds})

    def send_message(self, message: dict[str, Any]) -> None:
        """Send a text message, in order with what is on its way."""
        self._on_the_way.append(message)
        self._something_to_send.set()

    async def run(self) -> None:
        """Until `close`, or an error of the session, or the client is too slow.

        Raises:
            SlowClientError, and what a session raises while it makes frames.
        """
        clock, writer = asyncio.create_task(self._clock()), asyncio.create_task(self._write())
        try:
            done, _ = await asyncio.wait({clock, writer}, return_when=asyncio.FIRST_COMPLETED)
            if clock in done:
                clock.result()  # its error, if it has one
                await writer  # what is on its way when the session is closed still goes out
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
        self._something_to_send.set()

    async def _clock(self) -> None:
        """Queue each frame for the client when it is due."""
        async for frame in self._player:
            self._metrics.observe("lateness", self._player.lateness)
            self._queue_frame(frame)

    def _queue_frame(self, frame: Frame) -> None:
        if frame.speaking != self._speaking:
            self._speaking = frame.speaking
            self.send_message({"type": "state", "state": "speaking" if frame.speaking else "idle", "at": self._at})
        self._on_the_way.append(_Out(frame, self._at))
        self._at += len(frame.audio)
        if frame.end_of_segment:
            self.send_message({"type": "segment_end", "segment": frame.segment, "at": self._at})
        frames = [out for out in self._on_the_way if isinstance(out, _Out)]
        if len(frames) > TOO_SLOW:
            raise SlowClientError(
                f"{len(frames) / FPS:.0f} s of sound wait for the client", fix="read what the server sends, as it comes"
            )
        for out in frames[:-LATE_PICTURES]:
            if out.picture:
                out.picture = False
                self._metrics.count("pictures_dropped")
        self._something_to_send.set()

    async def _write(self) -> None:
        """Sends what is on its way."""
        while not (self._closed and not self._on_the_way):
            if not self._on_the_way:
                self._something_to_send.clear()
                await self._something_to_send.wait()
                continue
            out = self._on_the_way.popleft()
            if isinstance(out, _Out):
                await self._transport.send_frame(out.frame, out.at, out.picture)
            else:
                await self._transport.send_message(out)
