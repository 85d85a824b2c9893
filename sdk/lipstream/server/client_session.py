"""One client from connect to disconnect, over any transport: admission, limits, and what its messages do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import LipStreamError, ProtocolError, SlowClientError, UnavailableError
from ..media import FPS
from ..session import PreparedReference
from .audit import Who
from .failures import unexpected
from .protocol import INTERNAL, NORMAL, POLICY, TRY_AGAIN, ClientMessage, Close, Flush, Interrupt, Start, failure
from .realtime_session import RealtimeSession, Transport
from .state import Place, State

LOG = logging.getLogger("lipstream")
KEY_SECONDS = 5.0
"""After which a session looks whether its key is still valid."""
MOST_ERRORS = 50
"""Invalid messages after which the connection is closed."""
End = tuple[int, str]
"""A close code of the protocol, and the reason."""


class DisconnectedError(Exception):
    """The client disconnected."""


class ClientSession:
    """Runs at most one session, within the limits of the settings.

    Args:
        transport: to the client. who: it is. place: that the session has; None if it still has to take one.

    Attributes:
        id: in the log, and in the message `started`.
    """

    def __init__(self, state: State, transport: Transport, who: Who, place: Place | None = None) -> None:
        self.id = secrets.token_hex(4)
        self._state, self._transport, self._who, self._place = state, transport, who, place
        self._live: RealtimeSession | None = None
        self._errors = 0
        self._begun = time.monotonic()

    async def run(self, start: Start, listen: Callable[[RealtimeSession], Awaitable[End]]) -> End:
        """Open the session, and run it until client, server or a limit ends it.

        Args:
            listen: reads messages until the client disconnects.

        Raises:
            LipStreamError: the session does not open, or fails.
        """
        state = self._state
        assert state.references is not None
        reference = await state.references.get(start.reference)
        place = self._place or state.take_place()
        try:
            return await self._open(start, reference, listen)
        finally:
            place.release()

    async def _open(
        self, start: Start, reference: PreparedReference, listen: Callable[[RealtimeSession], Awaitable[End]]
    ) -> End:
        state = self._state
        assert state.engine is not None
        self._live = live = RealtimeSession(
            state.engine, reference, start, self._transport, state.metrics, max_late=state.settings.max_late
        )
        state.live[self.id] = live
        state.audit.write("session_opened", self._who, session=self.id, reference=start.reference)
        state.metrics.active.set(len(state.live))
        try:
            width, height = live.size
            started = {"type": "started", "session": self.id, "width": width, "height": height, "fps": FPS}
            live.send_message(started | {"sample_rate": start.sample_rate, "channels": start.channels})
            return await self._run(live, listen)
        except SlowClientError as error:
            return TRY_AGAIN, error.found
        finally:
            live.close()
            self._live = None
            state.live.pop(self.id, None)
            state.metrics.active.set(len(state.live))
            state.freed.return_soon()

    async def _run(self, live: RealtimeSession, listen: Callable[[RealtimeSession], Awaitable[End]]) -> End:
        running = asyncio.ensure_future(live.run())
        reading = asyncio.ensure_future(listen(live))
        limits = asyncio.ensure_future(self._limits(live))
        tasks: set[asyncio.Future[Any]] = {running, reading, limits}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if running in done:
                running.result()
                return NORMAL, "closed"
            end: End = next(iter(done)).result()
            return end
        finally:
            live.close()
            for task in (reading, limits):
                task.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(running, 2)
            await asyncio.gather(*tasks, return_exceptions=True)

    def log_end(self, code: int, reason: str) -> None:
        """Log how the connection ended, in one line."""
        seconds = time.monotonic() - self._begun
        LOG.info("session %s: %d %s, after %.1f s", self.id, code, reason, seconds)
        self._state.audit.write("session_ended", self._who, session=self.id, code=code, seconds=round(seconds, 1))

    async def _limits(self, live: RealtimeSession) -> End:
        """Return once the session has had no sound, or was open, for too long, or its key is removed or expired."""
        settings = self._state.settings
        while True:
            now = time.monotonic()
            quiet, whole = live.last_audio_at + settings.idle_limit - now, self._begun + settings.total_limit - now
            if quiet <= 0:
                return NORMAL, f"no sound for {settings.idle_limit:g} s"
            if whole <= 0:
                return NORMAL, f"open for {settings.total_limit:g} s"
            if not self._state.access.holds(self._who.key):
                return POLICY, "the key is not valid any more"
            await asyncio.sleep(min(quiet, whole, KEY_SECONDS))

    def handle_message(self, message: ClientMessage) -> End | None:
        """Apply a client's message; returns how to close the connection if the message asks for that.

        Raises:
            LipStreamError: the message is not valid in this state.
        """
        match message:
            case Close():
                return NORMAL, "closed"
            case _ if self._live is None:
                raise ProtocolError(f"{message.type} before the start", expected='first {"type": "start", ...}')
            case Flush():
                self._live.flush()
            case Interrupt():
                self._live.interrupt()
            case Start():
                raise ProtocolError("a second start", expected="one session on each connection")
        return None

    async def report_error(self, error: LipStreamError) -> None:
        """Report an invalid message to the client.

        Raises:
            ProtocolError: there were more than `MOST_ERRORS`.
        """
        self._errors += 1
        if self._errors > MOST_ERRORS:
            raise ProtocolError(f"more than {MOST_ERRORS} invalid messages", fix="read docs/protocol.md")
        message = failure(error, fatal=False)
        if self._live is not None:
            self._live.send_message(message)
        else:
            await self._transport.send_message(message)


async def ended(client: ClientSession, transport: Transport, connection: Awaitable[End]) -> End:
    """How `connection` ends, which is logged; an error is sent to the client."""
    try:
        code, reason = await connection
    except DisconnectedError:
        code, reason = NORMAL, "the client disconnected"
    except Exception as error:
        if isinstance(error, LipStreamError):
            code, message = TRY_AGAIN if isinstance(error, UnavailableError) else POLICY, failure(error, fatal=True)
        else:
            code, message = INTERNAL, unexpected(error)
        reason = message["message"]
        with contextlib.suppress(Exception):
            await transport.send_message(message)
    client.log_end(code, reason)
    return code, reason
