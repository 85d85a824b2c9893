"""Plays a session by the clock: a thread generates frames ahead, and each is handed out when it is due."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import TracebackType

from ..media import FPS
from .frame import Frame
from .session import LipSyncSession

AHEAD = 12
"""Frames that are kept ready."""


class RealtimePlayer:
    """Frames of a session in real time: ``async for frame in player`` yields one every 40 ms, until `close`.

    Use it in a ``with`` block: the thread keeps session and player alive until `close`.

    Generated only when they are due, each chunk's first frame would be late. Push audio to the session, flush and
    interrupt it directly: idle frames that are ready and not yet handed out are replaced by speech. Where a frame is
    late by more than 40 ms, the clock restarts from it; by less, the next ones catch up.

    Args:
        session: with `idle`; without it, playing pauses where there is no audio. It is closed with the player.
        paced: False hands out frames as soon as they are ready, for a consumer that keeps the time itself.

    Attributes:
        lateness: seconds by which the last frame came after it was due.
    """

    def __init__(self, session: LipSyncSession, *, paced: bool = True) -> None:
        self.session = session
        self.lateness = 0.0
        self._paced = paced
        self._error: BaseException | None = None
        self._finished = self._closed = False
        self._thread = threading.Thread(target=self._generate, name="lipstream-ahead", daemon=True)
        self._thread.start()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Raises what the session raises while it generates."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            if self._paced:
                await asyncio.sleep(max(0.0, due - clock()))
            frame = await self._next()
            if frame is None:
                return
            self.lateness = max(0.0, clock() - due)
            due += 1 / FPS + (self.lateness if self.lateness > 1 / FPS else 0.0)
            yield frame

    def close(self) -> None:
        """Close the session, and end the iteration. May be called again; the thread ends with its current chunk."""
        self._closed = True
        self.session.close()

    def __enter__(self) -> RealtimePlayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _next(self) -> Frame | None:
        """The next frame, once it is generated; None when this is closed."""
        state, loop, changed = self.session._state, asyncio.get_running_loop(), asyncio.Event()
        with state.woken(lambda: loop.is_closed() or loop.call_soon_threadsafe(changed.set)):
            while True:
                changed.clear()
                with state.changed:
                    frame = state.take()
                if frame is not None or self._closed:
                    return frame
                if self._finished:
                    if self._error is not None:
                        raise self._error
                    return None
                await changed.wait()

    def _generate(self) -> None:
        """The thread."""
        state = self.session._state
        try:
            while not state.closed:
                with state.changed:
                    state.changed.wait_for(lambda: state.closed or (len(state.queue) < AHEAD and state.ready()))
                self.session._generate(AHEAD)
        except BaseException as error:
            self._error = error
        finally:
            self.session.close()  # releases what a chunk in progress used
            self._finished = True
            with state.changed:
                state.notify()
