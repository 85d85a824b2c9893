"""Limits on connections, below HTTP: how many there are, in all and by address, and how long headers may take."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from .addresses import network_of
from .rate import TokenBuckets

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

LOG = logging.getLogger("lipstream")
HEADER_SECONDS = 10.0
"""In which a connection must have sent the headers of its next request."""
PARTS_A_SECOND, PARTS = 200, 1000
"""Pings, pongs and parts of messages that a WebSocket may send on average, and at once."""
READ = 1 << 14
"""Bytes that are read of a WebSocket at once."""


class Room:
    """How many connections may be open.

    Args:
        most: in all; at most half of the descriptors that the process may have.
        by_address: of one client (`network_of`), except the proxies `trusted`: addresses and networks, separated by
            commas; "*": all.
    """

    def __init__(self, most: int, by_address: int, trusted: str = "") -> None:
        self._most, self._by_address = most, by_address
        if resource is not None:
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self._most = min(most, descriptors // 2) if descriptors > 0 else most
        self._proxies = [_network(text.strip()) for text in trusted.split(",") if text.strip()]

    def admits(self, address: str, beside: int, of_it: int) -> bool:
        """Whether a connection of `address` may be opened beside so many others, `of_it` of them of the same client."""
        if beside < self._most and (of_it < self._by_address or self._trusts(address)):
            return True
        LOG.info("refused a connection: %d are open, %d of this address", beside, of_it)
        return False

    def _trusts(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(network is None or found in network for network in self._proxies)


class LimitedSocket(socket.socket):
    """A listening socket that closes connections beyond its room as they come, before TLS is negotiated.

    It works for event loops that call `accept`: asyncio's on Unix.
    """

    _room: Room
    _open: Counter[str]  # connections, by network

    @classmethod
    def of(cls, listener: socket.socket, room: Room) -> LimitedSocket:
        """`listener`, limited; it is detached."""
        limited = cls(listener.family, listener.type, listener.proto, fileno=listener.detach())
        limited._room, limited._open = room, Counter()
        return limited

    def accept(self) -> tuple[socket.socket, Any]:
        """See `socket.socket.accept`.

        Raises:
            BlockingIOError: also after a connection that was refused, so that the event loop goes on with other work
                before the next one.
        """
        connection, peer = super().accept()
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        network = network_of(address)
        if not self._room.admits(address, self._open.total(), self._open[network]):
            connection.close()
            raise BlockingIOError
        counted = _Counted(self.family, self.type, self.proto, fileno=connection.detach())
        counted.setblocking(False)
        counted.counts, counted.network = self._open, network
        self._open[network] += 1
        return counted, peer


class _Counted(socket.socket):
    """A connection that is counted until it is closed."""

    counts: Counter[str] | None = None
    network = ""

    def close(self) -> None:
        """See `socket.socket.close`."""
        super().close()
        if self.counts is not None:
            self.counts[self.network] -= 1
            if not self.counts[self.network]:
                del self.counts[self.network]
            self.counts = None


def guarded(room: Room) -> type[H11Protocol]:
    """uvicorn's protocol with a deadline of headers, for as many connections as there is room."""

    class Guarded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            address = self.client[0] if self.client else ""
            network = network_of(address)
            # Where the event loop does not call `LimitedSocket.accept`, nothing else counts connections.
            of_it = sum(network_of(_address(other)) == network for other in self.connections)
            if room.admits(address, len(self.connections) - 1, of_it - 1):
                self._expect_headers()
            else:
                transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            upgraded = self.transport.get_protocol() is not self
            if upgraded or (self.cycle is not None and not self.cycle.response_complete):
                self._cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle is None or self.cycle.response_complete:  # else the next one had arrived behind it
                self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            self._cancel()
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

        def _cancel(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Guarded


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """A network; None for all of them. A name, which uvicorn takes, too, is none of an address."""
    if text == "*":
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return ipaddress.ip_network("255.255.255.255")


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, with limits on what no message is made of, so that nothing else paces it: pings, pongs, fragments."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._parts = TokenBuckets(PARTS_A_SECOND, PARTS)
        if hasattr(transport, "max_size"):  # asyncio's: of one read, all of which is taken apart at once
            transport.max_size = READ

    def handle_ping(self) -> None:
        if self._counted() and self.writable.is_set():
            super().handle_ping()
        else:  # a client that does not read gets no answers, which would fill the memory
            self.conn.data_to_send()

    def handle_pong(self, event: Frame) -> None:
        if self._counted():
            super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        if self._counted():
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()  # uvicorn would log a trace of the error
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
        else:
            super().send_receive_event_to_app()

    def _counted(self) -> bool:
        """Whether one more part of a message, ping or pong is within the limit; if not, the connection is closed."""
        if self.close_sent:
            return False
        if not self._parts.take(""):
            self._fail(CloseCode.POLICY_VIOLATION, "too many pings, pongs or parts of messages")
        return not self.close_sent

    def _fail(self, code: CloseCode, reason: str) -> None:
        if not self.close_sent:
            self.conn.send_close(code, reason)
            self.handle_parser_exception()
            if not self.writable.is_set():  # the client does not read: it would stay open
                self.transport.abort()


def _address(connection: Any) -> str:
    """The address of a connection over either protocol."""
    transport = getattr(connection, "transport", None)
    peer = transport.get_extra_info("peername") if transport is not None else None
    return str(peer[0]) if peer else ""
