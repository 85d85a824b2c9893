"""A session over one WebSocket: docs/protocol.md."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor
from importlib.metadata import version
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from starlette.types import Message

from ...errors import LipStreamError, ProtocolError
from ...media import to_int16
from ...session import Frame
from ..client_session import ClientSession, DisconnectedError, End, ended
from ..frame_encoder import frame_encoder
from ..gate import who
from ..pace import Pace
from ..protocol import IDLE, KEY, LAST, NORMAL, PCM, POLICY, SPEAKING, Start, hello, pack, parse
from ..realtime_session import RealtimeSession
from ..state import State


class WebSocketConnection:
    """Reads messages and runs at most one session, whose transport it is.

    Args:
        pool: threads that encode pictures.
    """

    def __init__(self, state: State, socket: WebSocket, pool: Executor) -> None:
        self._state, self._socket, self._pool = state, socket, pool
        self._client = ClientSession(state, self, who(socket))

    async def send_message(self, message: dict[str, Any]) -> None:
        """See `Transport`."""
        with _disconnects():
            await self._socket.send_json(message)

    async def send_frame(self, frame: Frame, at: int, picture: bool) -> None:
        """See `Transport`."""
        flags = IDLE * frame.idle | SPEAKING * frame.speaking | LAST * frame.end_of_segment
        pcm = to_int16(frame.audio).astype("<i2").tobytes()
        with _disconnects():
            await self._socket.send_bytes(pack(PCM, flags, frame.segment, frame.index, at, pcm))
        if picture:
            run = asyncio.get_running_loop().run_in_executor
            data, key = await run(self._pool, self._encoder.encode, frame.picture)
            kind = self._encoder.kind
            with _disconnects():
                await self._socket.send_bytes(pack(kind, flags | KEY * key, frame.segment, frame.index, at, data))

    async def close(self, code: int, reason: str) -> None:
        """See `Connection`."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._socket.close(code, reason[:100]), 5)

    async def run(self) -> None:
        """Run from the message `hello` to the close."""
        await self.close(*await ended(self._client, self, self._run()))

    async def _run(self) -> End:
        assert self._state.references is not None
        await self.send_message(hello(version("lipstream"), self._state.references.names()))
        try:
            start = await asyncio.wait_for(self._start(), self._state.settings.start_within)
        except TimeoutError:
            return POLICY, f"no start within {self._state.settings.start_within:g} s"
        if start is None:
            return NORMAL, "closed"
        size = (await self._state.references.get(start.reference)).size
        self._encoder = frame_encoder(start.video, *size)
        return await self._client.run(start, self._read)

    async def _start(self) -> Start | None:
        """The first valid `start`; None if the client closes."""
        while True:
            message = await self._receive()
            try:
                if (text := message.get("text")) is None:
                    raise ProtocolError("sound before the start", expected='first {"type": "start", ...}')
                wanted = parse(text)
                if isinstance(wanted, Start):
                    return wanted
                if self._client.handle_message(wanted):
                    return None
            except ProtocolError as error:
                await self._client.report_error(error)

    async def _receive(self) -> Message:
        with _disconnects():
            message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise DisconnectedError
        return message

    async def _read(self, live: RealtimeSession) -> End:
        pace = Pace()
        while True:
            await pace.wait()
            message = await self._receive()
            try:
                with pace.handling():
                    if (data := message.get("bytes")) is not None:
                        live.push(data)
                    elif end := self._client.handle_message(parse(message["text"])):
                        return end
            except LipStreamError as error:  # the message is not valid; the session continues
                await self._client.report_error(error)


@contextlib.contextmanager
def _disconnects() -> Iterator[None]:
    """Turn what a closed socket raises into DisconnectedError. Starlette raises RuntimeError after a close."""
    try:
        yield
    except (WebSocketDisconnect, RuntimeError) as error:
        raise DisconnectedError from error
