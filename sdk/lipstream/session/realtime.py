"""Plays a session by the clock: a thread generates frames ahead, and each is handed out when it is due."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import TracebackType
from weakref import finalize

from ..checks import check_type
from ..media import FPS
from ..shutdown import working
from .frame import Frame
from .session import LipSyncSession

AHEAD = 12
"""Frames that are kept ready."""


class RealtimePlayer:
    """Frames of a session in real time: ``async for frame in player`` yields one every 40 ms, until `close`.

    Use it in a ``with`` or ``async with`` block. The thread ends with the chunk that it is generating once the player
    is closed or collected, and at the end of the process.

    Generated only when they are due, each chunk's first frame would be late. Push audio to the session, flush and
    interrupt it directly: idle frames that are ready and not yet handed out are replaced by speech. Where a frame is
    late by more than 40 ms, the clock restarts from it; by less, the next ones catch up.

    Args:
        session: with `idle`; without it, playing pauses where there is no audio. It is closed with the player.
        paced: False hands out frames as soon as they are ready, for a consumer that keeps the time itself.

    Attributes:
        session: as given.
        lateness: seconds by which the last frame came after it was due.
    """

    def __init__(self, session: LipSyncSession, *, paced: bool = True) -> None:
        check_type("session", session, LipSyncSession)
        self.session = session
        self.lateness = 0.0
        self._paced = paced
        self._ahead = _GeneratingThread(session)
        finalize(self, session.close)

    def __repr__(self) -> str:
        return f"<RealtimePlayer of {self.session!r}>"

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
        """Close the session, and end the iteration and the thread. May be called again.

        Waits for the thread, which finishes its current chunk; but not on an event loop, where `aclose` does.
        """
        self.session.close()
        if not _on_event_loop():
            self._ahead.join()

    async def aclose(self) -> None:
        """As `close`, on an event loop."""
        self.session.close()
        await asyncio.to_thread(self._ahead.join)

    def __enter__(self) -> RealtimePlayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> RealtimePlayer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _next(self) -> Frame | None:
        """The next frame, once it is generated; None when this is closed."""
        state = self.session._state

        def next_frame() -> tuple[Frame | None] | None:
            if (frame := state.take()) is not None:
                return (frame,)
            if self._ahead.error is not None:
                raise self._ahead.error
            over = self._ahead.finished or (state.closed and not state.ended_by)
            return (None,) if over else None

        (frame,) = await state.when(next_frame)
        return frame


class _GeneratingThread:
    """The thread. It does not refer to the player, so that that can be collected.

    Attributes:
        error: that ended it. finished: whether it has ended.
    """

    def __init__(self, session: LipSyncSession) -> None:
        self._session = session
        self.error: BaseException | None = None
        self.finished = False
        self._thread = threading.Thread(target=self._generate, name="lipstream-ahead", daemon=True)
        self._thread.start()

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _generate(self) -> None:
        state = self._session._state
        try:
            with working():
                while not state.closed:
                    with state.changed:
                        state.changed.wait_for(lambda: state.closed or (len(state.queue) < AHEAD and state.ready()))
                    self._session._generate(AHEAD)
        except BaseException as error:
            self.error = error
        finally:
            self._session.close()  # releases what a chunk in progress used
            self.finished = True
            with state.changed:
                state.notify()


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
