"""One live session: frames are generated ahead, queued for the client one every 40 ms, and sent by a writer.

Every queue is bounded by the duration of its frames: generated frames (about a chunk), frames queued for the client (a
second; then pictures are dropped, the oldest first, but never sound), and the session's own audio. A client that reads
too slowly delays no other session, and is disconnected in the end.

Where generating is too slow, sound waits for pictures by `max_late` seconds in all, until it idles. Then sound is sent
on time without pictures, and the session continues some frames later, so that what it generates next can be on time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..engine import LipSyncEngine
from ..errors import BackpressureError, SlowClientError
from ..media import FPS, to_float
from ..media.audio import split_pcm
from ..metrics import Metrics
from ..session import Frame, PreparedReference, RealtimePlayer
from .protocol import Start
from .punctuality import Punctuality
from .unplayed import UnplayedSound

LATE_PICTURES = FPS
"""Queued frames beyond which pictures are dropped."""
TOO_SLOW = 20 * FPS
"""Queued frames beyond which the client is disconnected."""
MOST_QUEUED = 2 * TOO_SLOW
"""Queued frames and text messages, likewise."""
FIRST_LATE = 3
"""A segment's first sound waits this many times as long for its picture as the sound that follows."""
SKIP, MOST_SKIP = FPS, 8 * FPS
"""Frames sent without pictures when that is exceeded; twice as many each time if that was too few for a picture."""
PAUSE, RESUME = 30.0, 10.0
"""Seconds of sound beyond which the client is asked to pause, and below which to resume."""
MARGIN = 2.0
"""Seconds that the session takes beyond what its client may send."""


class Transport(Protocol):
    """Sends to one client. Both methods wait while its buffer is full."""

    async def send_message(self, message: dict[str, Any]) -> None:
        """Send a text message."""

    async def send_frame(self, frame: Frame, at: int, picture: bool) -> None:
        """Send a frame, `at` samples from the session's start; without `picture` only its sound."""


@dataclass
class _Out:
    """A queued frame.

    Attributes:
        at: samples before it. picture: whether its picture is still to be sent. generated: False for sound alone.
    """

    frame: Frame
    at: int
    picture: bool
    generated: bool


class RealtimeSession:
    """See above. Belongs to one event loop.

    Args:
        start: the client's first message. transport: to the client. max_pending: seconds of sound that may wait.
        max_late: seconds that sound waits for pictures.
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
        max_late: float = 1.0,
    ) -> None:
        self.size = reference.size
        self._paused = False
        self._start, self._transport, self._metrics = start, transport, metrics
        self._max_pending, self._max_late = max_pending, max_late
        self._session = engine.session(
            reference,
            idle=start.idle,
            seed=start.seed,
            sample_rate=start.sample_rate,
            channels=start.channels,
            max_pending=max_pending + MARGIN,
        )
        self._player = RealtimePlayer(self._session, paced=False)
        self._coming = _Coming(self._player)
        self._unplayed = UnplayedSound(start.sample_rate, start.channels)
        self._punctuality = Punctuality(max_late)
        self._skipping = self._index = 0  # frames still to be sent without a picture; the next frame's index
        self._last: Frame | None = None
        self._skip = SKIP
        self._starting = True  # no frame was spoken since the session idled, or was interrupted
        self._queued: deque[_Out | dict[str, Any]] = deque()
        self._has_queued = asyncio.Event()
        self._at = 0
        self._speaking: bool | None = None
        self._closed = False
        self._cut = b""  # of a sample that is cut between two messages
        self.last_audio_at = time.monotonic()

    @property
    def degraded(self) -> bool:
        """Pictures are skipped, or late: the machine has too much to do."""
        return self._punctuality.degraded

    def push(self, data: bytes) -> None:
        """Push sound of the client, int16 little endian; a sample may be cut between two messages.

        Raises:
            BackpressureError: too much sound would wait; nothing was taken. SessionClosedError: after `close`.
        """
        self.last_audio_at = time.monotonic()
        samples, cut = split_pcm(self._cut + data, self._start.channels)
        seconds = self._unplayed.seconds + len(samples) / self._start.sample_rate
        if seconds > self._max_pending:
            raise BackpressureError(
                f"{seconds:.1f} s of sound would be waiting; this message was not taken",
                expected=f"at most {self._max_pending:g} s ahead of what is played",
                fix='stop sending at the message "pause", send this again after "resume" (docs/protocol.md)',
            )
        self._session.push_audio(samples, self._start.sample_rate)
        self._cut = cut
        self._unplayed.push(samples)
        self._control_flow()

    def flush(self) -> None:
        """End the segment."""
        self._cut = b""
        self._session.flush()
        self._unplayed.end_segment()

    def interrupt(self) -> None:
        """Discard everything that was not sent yet, and tell the client where its clock continues."""
        self._cut = b""
        waiting = [out for out in self._queued if isinstance(out, _Out)]
        unshown = sum(out.generated for out in waiting) + self._coming.discard()
        seconds = self._session.interrupt(unshown=unshown)
        self._unplayed.clear()
        self._skipping, self._starting = 0, True
        if waiting:
            self._at, self._index = waiting[0].at, waiting[0].frame.index
        self._queued = deque(out for out in self._queued if not isinstance(out, _Out))
        self.send_message({"type": "interrupted", "at": self._at, "seconds": seconds})
        self._control_flow()

    def send_message(self, message: dict[str, Any]) -> None:
        """Queue a text message behind the frames that are queued.

        Raises:
            SlowClientError: too many messages wait: interrupts discard frames, but not what is said of them.
        """
        if len(self._queued) > MOST_QUEUED:
            raise SlowClientError(
                f"{MOST_QUEUED} messages are queued for the client", fix="read messages as they arrive"
            )
        self._queued.append(message)
        self._has_queued.set()

    def _control_flow(self) -> None:
        seconds = self._unplayed.seconds
        if seconds < RESUME if self._paused else seconds > PAUSE:
            self._paused = not self._paused
            self.send_message({"type": "pause" if self._paused else "resume", "seconds": round(seconds, 2)})

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
            await self._player.aclose()

    def close(self) -> None:
        """End the session; may be called again."""
        self._closed = True
        self._player.close()
        self._has_queued.set()

    async def _clock(self) -> None:
        """Queue each frame for the client when it is due."""
        clock, coming = asyncio.get_running_loop().time, self._coming
        due, waited = clock(), 0.0
        try:
            while True:
                await asyncio.sleep(max(0.0, due - clock()))
                if self._skipping and self._queue_sound():
                    due += 1 / FPS
                    continue
                limit = FIRST_LATE * self._max_late if self._starting else self._max_late - waited
                patience = max(0.0, due + limit - clock()) if self._can_skip() else 1 / FPS
                if not await coming.within(patience):
                    if self._can_skip() and clock() >= due + limit:
                        self._skip_ahead()
                    continue
                if (frame := coming.take()) is None:
                    return
                lateness = max(0.0, clock() - due)
                late = lateness if lateness > 1 / FPS else 0.0  # less is made up for by the next frames
                waited = 0.0 if frame.idle or self._starting else waited + late
                due += 1 / FPS + late
                self._metrics.observe("lateness", lateness)
                self._queue_frame(frame, late)
        finally:
            await coming.cancel()

    def _can_skip(self) -> bool:
        return self._last is not None and self._unplayed.frames(self._index, 1) > 0

    def _skip_ahead(self) -> None:
        """Let the session continue with the sound that is due in some frames, or with the next segment."""
        self._skipping = self._unplayed.frames(self._index, self._skip)
        self._skip = min(2 * self._skip, MOST_SKIP)
        self._session.interrupt()
        for samples, ended in self._unplayed.after(self._index, self._skipping):
            self._session.push_audio(samples, self._start.sample_rate)
            if ended:
                self._session.flush()

    def _queue_sound(self) -> bool:
        """Queue the sound of a frame without its picture; False if there is none."""
        self._skipping -= 1
        if self._last is None or not self._can_skip():
            return False
        number = self._unplayed.number
        sound, ends = self._unplayed.take(self._unplayed.count(self._index))
        self._starting = False
        self._metrics.count("pictures_skipped")
        self._judge(0.0, skipped=True)
        frame = replace(self._last, audio=to_float(sound), segment=number, end_of_segment=ends, idle=False)
        self._queue(frame, generated=False)
        return True

    def _queue_frame(self, frame: Frame, delay: float) -> None:
        number = self._unplayed.number
        if not frame.idle:
            self._unplayed.take(len(frame.audio))
            self._skip = SKIP
        self._judge(0.0 if self._starting and not frame.idle and delay < FIRST_LATE * self._max_late else delay)
        self._last, self._starting = frame, frame.idle
        self._queue(replace(frame, segment=number), generated=True)

    def _judge(self, delay: float, *, skipped: bool = False) -> None:
        if self._punctuality.add(delay, skipped=skipped):
            self.send_message({"type": "degraded", "degraded": self.degraded, "at": self._at})

    def _queue(self, frame: Frame, *, generated: bool) -> None:
        if frame.speaking != self._speaking:
            self._speaking = frame.speaking
            self.send_message({"type": "state", "state": "speaking" if frame.speaking else "idle", "at": self._at})
        self._queued.append(_Out(replace(frame, index=self._index), self._at, generated, generated))
        self._index += 1
        self._control_flow()
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


class _Coming:
    """The next frame of a player; waiting for it may be given up and taken up again."""

    def __init__(self, frames: AsyncIterable[Frame]) -> None:
        self._frames = aiter(frames)
        self._task: asyncio.Future[Frame | None] | None = None

    async def within(self, seconds: float | None) -> bool:
        """Whether the frame is there, after at most `seconds`."""
        if self._task is None:
            self._task = asyncio.ensure_future(anext(self._frames, None))
        await asyncio.wait({self._task}, timeout=seconds)
        return self._task is not None and self._task.done()  # None: discarded meanwhile

    def take(self) -> Frame | None:
        """The frame; None when the player is closed. Raises what the player raises."""
        assert self._task is not None
        task, self._task = self._task, None
        return task.result()

    def discard(self) -> int:
        """Forget a frame that is there and was not taken; how many there were, 0 or 1."""
        task = self._task
        if task is None or not task.done() or task.cancelled() or task.exception() or task.result() is None:
            return 0
        self._task = None
        return 1

    async def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
