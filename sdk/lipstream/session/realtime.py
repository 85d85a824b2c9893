"""Frames made ahead of their time: a thread of its own keeps a chunk of them ready for an event loop.

For everything that shows frames by a clock: made when they are due, each chunk's first would be late. What is ready and
not yet shown gives way to speech, and to an interrupt, as if it had not been made.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from numpy.typing import ArrayLike

from . import Frame, LipSyncSession

READY = 12
"""Frames that are kept ready."""


class FramesAhead:
    """A session, and the thread that makes its frames. It belongs to the running event loop; `close` it.

    Args:
        session: with `idle`, or `next` waits where there is no audio. It is closed with this.
    """

    def __init__(self, session: LipSyncSession) -> None:
        self.session = session
        self._ready: deque[Frame] = deque()
        self._lock = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make, name="lipstream-ahead", daemon=True)
        self._thread.start()

    def push(self, pcm: ArrayLike, sample_rate: int) -> None:
        """As `LipSyncSession.push_audio`."""
        with self._lock:
            self.session.push_audio(pcm, sample_rate)
            self._give_way()

    def flush(self) -> None:
        """As `LipSyncSession.flush`."""
        with self._lock:
            self.session.flush()
            self._give_way()

    def interrupt(self, unshown: int = 0) -> float:
        """As `LipSyncSession.interrupt`; `unshown` of the frames that `next` gave were not shown either."""
        with self._lock:
            seconds = self.session.interrupt(unshown=len(self._ready) + unshown)
            self._ready.clear()
            self._lock.notify_all()
        return seconds

    async def next(self) -> Frame | None:
        """The next frame, once it is made; None when this is closed.

        Raises:
            What the session raises while it makes frames.
        """
        while True:
            self._changed.clear()
            with self._lock:
                if self._closed:
                    return None
                if self._ready:
                    self._lock.notify_all()
                    return self._ready.popleft()
                if self._error is not None:
                    raise self._error
            await self._changed.wait()

    def close(self) -> None:
        """End the session; may be called again. The thread ends with the chunk that it makes."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self.session.close()
        self._wake()

    def _make(self) -> None:
        """The thread."""
        try:
            while True:
                with self._lock:
                    while len(self._ready) >= READY and not self._closed:
                        self._lock.wait()
                    if self._closed:
                        return
                    frame = self.session.take()
                    if frame is not None:
                        self._ready.append(frame)
                        self._wake()
                        continue
                    if not self.session.can_make:
                        self._lock.wait(0.1)  # until there is audio
                        continue
                if not self.session.make():
                    return
        except BaseException as error:
            if not self._closed:
                self._error = error
        finally:
            self.session.close()  # what a chunk held that was under way is released here
            self._wake()

    def _give_way(self) -> None:
        """Idle frames that are ready go, once there is something to say; under the lock."""
        if self._ready and self._ready[0].idle and self.session.has_speech:
            self.session.give_way(len(self._ready))
            self._ready.clear()
        self._lock.notify_all()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)
