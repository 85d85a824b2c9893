"""Limits on connections: uvicorn's server with a small application, and clients that open, or send, half of it."""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID
from lipstream.server import connections
from lipstream.server.addresses import network_of
from lipstream.server.command import listen
from lipstream.server.connections import LimitedSocket, Room, WebSocketProtocol, guarded

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
DAY, PEM = datetime.timedelta(days=1), serialization.Encoding.PEM
SERVERS: list[uvicorn.Server] = []
UPGRADE = GET[:-2] + (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
Client = Callable[[int], Awaitable[None]]


async def answering(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serve(client: Client, tls: tuple[Path, Path] | None = None, **limits: Any) -> None:
    """Run `client` with the port of a server; `tls`: its certificate and key."""

    async def both() -> None:
        room = Room(**{"most": 100, "by_address": 100, **limits})
        with LimitedSocket.of(listen("127.0.0.1", 0), room) as listener:
            config = uvicorn.Config(
                answering,
                http=guarded(room),
                ws=WebSocketProtocol,
                lifespan="off",
                log_level="critical",
                ssl_certfile=tls and tls[0],
                ssl_keyfile=tls and tls[1],
            )
            server = uvicorn.Server(config)
            SERVERS.append(server)
            running = asyncio.ensure_future(server.serve(sockets=[listener]))
            await client(listener.getsockname()[1])
            server.should_exit = True
            await running

    asyncio.run(asyncio.wait_for(both(), 30))


async def connected(port: int, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    return reader, writer


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes the connection, rather than answering."""
    try:
        return await asyncio.wait_for(reader.read(1), 10) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: local", GET + b"GET / HT"])
def test_half_of_the_headers_is_not_waited_for(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)

    async def client(port: int) -> None:
        reader, _ = await connected(port, sent)
        if sent.startswith(GET):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        assert await is_closed(reader)

    serve(client)


def test_a_websocket_is_not_taken_for_slow_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)

    async def client(port: int) -> None:
        reader, _ = await connected(port, UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.6)

    serve(client)


def test_a_refused_connection_gives_the_event_loop_a_turn() -> None:
    """However many come, one is refused at a time; and a place is free once its connection is closed."""
    with LimitedSocket.of(listen("127.0.0.1", 0), Room(1, 1)) as listener:
        listener.setblocking(False)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(4)]
        held, _ = listener.accept()
        for client in clients[1:3]:
            with pytest.raises(BlockingIOError):
                listener.accept()
            client.settimeout(5)
            assert client.recv(1) == b""
        held.close()
        held.close()
        last, address = listener.accept()
        assert address == clients[3].getsockname()
        last.close()
        for client in clients:
            client.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Of localhost, signed by itself, and its key."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    own = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    signed = built.add_extension(own, critical=False).sign(key, None)
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    plain = serialization.NoEncryption()
    paths[0].write_bytes(signed.public_bytes(PEM))
    paths[1].write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
    return paths


@pytest.mark.parametrize("limits", [{"most": 3}, {"by_address": 3}])
def test_connections_that_negotiate_no_tls_are_limited(certificate: tuple[Path, Path], limits: dict[str, int]) -> None:
    async def client(port: int) -> None:
        held = [await connected(port) for _ in range(8)]
        assert all([await is_closed(reader) for reader, _ in held[3:]])
        for reader, _ in held[:3]:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.2)
        context = ssl.create_default_context(cafile=certificate[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        writer.write(GET)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()

    serve(client, certificate, **limits)


@pytest.mark.parametrize(
    ("limits", "open_ones"),
    [
        ({"most": 5}, 5),
        ({"by_address": 3}, 3),
        ({"by_address": 3, "trusted": "10.0.0.1, 127.0.0.0/8"}, 8),  # a proxy
    ],
)
def test_connections_beyond_a_limit_are_closed_and_leave_room_again(limits: dict[str, Any], open_ones: int) -> None:
    async def client(port: int) -> None:
        held = [await connected(port) for _ in range(8)]
        await asyncio.sleep(0.2)
        closed = [await is_closed(reader) for reader, _ in held[open_ones:]]
        assert all(closed)
        for reader, writer in held[:open_ones]:
            writer.write(GET)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.close()
        await asyncio.sleep(0.2)
        reader, _ = await connected(port, GET)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")

    serve(client, **limits)


def test_pings_of_a_client_that_does_not_read_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PARTS", 1e9)
    ping = b"\x89\xfd" + bytes(4) + b"p" * 125  # masked, with a mask of zeros

    async def client(port: int) -> None:
        reader, writer = await connected(port, UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        writer.write(ping)
        assert await reader.readexactly(127) == b"\x8a\x7d" + b"p" * 125  # one is answered
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(400):
            writer.write(500 * ping)  # 26 MB in all
            await writer.drain()
        (protocol,) = SERVERS[-1].server_state.connections
        assert protocol.transport.get_write_buffer_size() < 1 << 18  # type: ignore[union-attr]

    serve(client)


@pytest.mark.parametrize(
    "flood",
    [b"\x89\x80", b"\x8a\x80", b"\x00\x80"],  # pings, pongs, empty parts of one message
    ids=["pings", "pongs", "parts"],
)
def test_a_flood_of_what_is_no_message_ends_its_connection(flood: bytes) -> None:
    async def client(port: int) -> None:
        reader, writer = await connected(port, UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        writer.write(b"\x01\x80" + bytes(4))  # a text that goes on
        writer.write(2_000 * (flood + bytes(4)))
        answer = await asyncio.wait_for(reader.read(), 10)
        assert b"\x03\xf0too many" in answer  # 1008

    serve(client)


def test_messages_in_parts_and_pings_between_them_are_no_flood() -> None:
    async def client(port: int) -> None:
        reader, writer = await connected(port, UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        for _ in range(20):
            writer.write(b"\x02\x80" + bytes(4) + 20 * (b"\x00\x80" + bytes(4)) + b"\x80\x80" + bytes(4))
            writer.write(b"\x89\x81" + bytes(4) + b"p")
            assert await reader.readexactly(3) == b"\x8a\x01p"

    serve(client)


def test_text_that_is_not_utf8_closes_its_connection_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def client(port: int) -> None:
        logging.getLogger("uvicorn").propagate = True
        logging.getLogger("uvicorn.error").setLevel("WARNING")
        reader, writer = await connected(port, UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        writer.write(b"\x81\x81" + bytes(4) + b"\xff")
        assert (await asyncio.wait_for(reader.read(), 10))[2:4] == b"\x03\xef"  # 1007

    serve(client)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_request_behind_another_one_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    answer = answering

    async def slowly(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await answer(scope, receive, send)

    monkeypatch.setitem(globals(), "answering", slowly)

    async def client(port: int) -> None:
        reader, writer = await connected(port, GET + GET)
        for _ in range(2):
            assert (await asyncio.wait_for(reader.readuntil(b"ok"), 10)).startswith(b"HTTP/1.1 200")
        writer.close()

    serve(client)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_a_network_of_ipv6_is_one_client(address: str, network: str) -> None:
    assert network_of(address) == network
