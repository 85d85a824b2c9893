"""One live session: a thread makes frames ahead, a clock lets one out every 40 ms, a writer packs and sends them.

Three queues, each bounded by the time that its frames last: made frames (a chunk), frames on their way to the client (a
second; then pictures are left out, the oldest first, but never sound), and the session's own audio. So a client that
does not read costs nobody else anything, and is let go in the end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import LipSyncEngine
from ..errors import ProtocolError, SlowClientError
from ..media import FPS
from ..metrics import Metrics
from ..reference import PreparedReference
from ..session import Frame
from .pictures import packer
from .protocol import IDLE, KEY, LAST, PCM, SPEAKING, Start, pack

LOG = logging.getLogger("lipstream")
AHEAD = 12
"""Frames that are made before they are due."""
LATE_PICTURES = FPS
"""Frames on their way to the client from which on pictures are left out."""
TOO_SLOW = 20 * FPS
"""Frames on their way from which on the client is let go."""


@dataclass
class _Out:
    """A frame on its way. Attributes: at: samples before it. picture: whether its picture is still to be sent."""

    frame: Frame
    at: int
    picture: bool = True


class LiveSession:
    """See above. All methods but the thread's own are for one event loop.

    Args:
        send: a text message (dict) or a binary one to the client; waits while its buffer is full.
        pool: packs pictures.
    """

    def __init__(
        self,
        engine: LipSyncEngine,
        reference: PreparedReference,
        start: Start,
        send: Callable[[dict[str, Any] | bytes], Awaitable[None]],
        pool: Executor,
        metrics: Metrics,
        *,
        max_pending: float = 60.0,
    ) -> None:
        self._session = engine.session(reference, idle=start.idle, seed=start.seed, max_pending=max_pending)
        height, width = reference.at(0).image.shape[:2]
        self.size = width, height
        self._start, self._send, self._pool, self._metrics = start, send, pool, metrics
        self._packer = packer(start.video, width, height)
        self._lock = threading.Condition()
        self._made: deque[Frame] = deque()
        self._on_the_way: deque[_Out | dict[str, Any]] = deque()
        self._loop = asyncio.get_running_loop()
        self._something_made, self._something_to_send = asyncio.Event(), asyncio.Event()
        self._at = 0
        self._speaking: bool | None = None
        self._closed = False
        self._error: BaseException | None = None
        self.heard_at = time.monotonic()
        self._thread = threading.Thread(target=self._make, name="lipstream-live", daemon=True)

    def push(self, data: bytes) -> None:
        """Sound of the client.

        Raises:
            ProtocolError: no whole samples. BackpressureError, SessionClosedError: see `LipSyncSession.push_audio`.
        """
        channels = self._start.channels
        if len(data) % (2 * channels):
            raise ProtocolError(f"{len(data)} bytes of sound", expected=f"int16 samples of {channels} channels")
        self.heard_at = time.monotonic()
        pcm = np.frombuffer(data, "<i2").reshape(-1, channels)
        with self._lock:
            self._session.push_audio(pcm, self._start.sample_rate)
            self._give_way()

    def flush(self) -> None:
        with self._lock:
            self._session.flush()
            self._give_way()

    def interrupt(self) -> None:
        """Forget all that was not sent yet. The client is told where its clock goes on."""
        with self._lock:
            waiting = [out for out in self._on_the_way if isinstance(out, _Out)]
            seconds = self._session.interrupt(unshown=len(self._made) + len(waiting))
            self._made.clear()
            if waiting:
                self._at = waiting[0].at
            self._on_the_way = deque(out for out in self._on_the_way if not isinstance(out, _Out))
            self._lock.notify_all()
        self.say({"type": "interrupted", "at": self._at, "seconds": seconds})

    def say(self, message: dict[str, Any]) -> None:
        """Send a text message, in order with what is on its way."""
        self._on_the_way.append(message)
        self._something_to_send.set()

    async def run(self) -> None:
        """Until `close`, or an error of the session, or the client is too slow.

        Raises:
            SlowClientError, and what a session raises while it makes frames.
        """
        self._thread.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                clock = tasks.create_task(self._clock())
                writer = tasks.create_task(self._write())
                await asyncio.wait([clock, writer], return_when=asyncio.FIRST_COMPLETED)
                clock.cancel()
                writer.cancel()
        except* Exception as group:
            raise group.exceptions[0] from None
        finally:
            self.close()

    def close(self) -> None:
        """End the session; may be called again. Its thread ends with the chunk that it makes."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._session.close()
        self._something_made.set()
        self._something_to_send.set()

    def _make(self) -> None:
        """The thread: frames ahead of the clock."""
        try:
            while True:
                with self._lock:
                    while len(self._made) >= AHEAD and not self._closed:
                        self._lock.wait()
                    if self._closed:
                        return
                    frame = self._session.take()
                    if frame is not None:
                        self._made.append(frame)
                        self._wake(self._something_made)
                        continue
                if not self._session.make():
                    return
        except BaseException as error:
            if not self._closed:
                self._error = error
        finally:
            self._session.close()  # the reference is released here if a chunk was under way
            self._wake(self._something_made)

    def _wake(self, event: asyncio.Event) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(event.set)

    def _give_way(self) -> None:
        """Idle frames that were made ahead go, once there is something to say; under the lock."""
        if self._made and self._made[0].idle and self._session.has_speech:
            self._session.give_way(len(self._made))
            self._made.clear()
            self._lock.notify_all()

    async def _clock(self) -> None:
        """Lets a frame out every 40 ms; where one is late, the clock waits for it."""
        due = self._loop.time()
        while not self._closed:
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            while (frame := self._next()) is None:
                if self._error is not None:
                    raise self._error
                if self._ended():
                    return
                self._something_made.clear()
                if not self._made:
                    await self._something_made.wait()
            late = max(0.0, self._loop.time() - due)
            self._metrics.observe("lateness", late)
            due += 1 / FPS + (late if late > 1 / FPS else 0.0)
            self._let_out(frame)

    def _ended(self) -> bool:
        return self._closed

    def _next(self) -> Frame | None:
        with self._lock:
            if not self._made:
                return None
            self._lock.notify_all()
            return self._made.popleft()

    def _let_out(self, frame: Frame) -> None:
        if frame.speaking != self._speaking:
            self._speaking = frame.speaking
            self.say({"type": "state", "state": "speaking" if frame.speaking else "idle", "at": self._at})
        self._on_the_way.append(_Out(frame, self._at))
        self._at += len(frame.audio)
        if frame.end_of_segment:
            self.say({"type": "segment_end", "segment": frame.segment, "at": self._at})
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
        """Packs and sends."""
        while not (self._closed and not self._on_the_way):
            if not self._on_the_way:
                self._something_to_send.clear()
                await self._something_to_send.wait()
                continue
            out = self._on_the_way.popleft()
            if not isinstance(out, _Out):
                await self._send(out)
                continue
            frame = out.frame
            flags = IDLE * frame.idle | SPEAKING * frame.speaking | LAST * frame.end_of_segment
            pcm = np.clip(np.rint(frame.audio * 32767), -32768, 32767).astype("<i2").tobytes()
            await self._send(pack(PCM, flags, frame.segment, frame.index, out.at, pcm))
            if out.picture:
                data, key = await self._loop.run_in_executor(self._pool, self._packer.pack, frame.image)
                await self._send(pack(self._packer.kind, flags | KEY * key, frame.segment, frame.index, out.at, data))
