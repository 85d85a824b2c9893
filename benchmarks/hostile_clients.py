"""Clients that mean harm to `lipstream serve`, of twelve kinds, all in one process.

Each kind comes from an address of its own (127.0.1.1 and on), so that what the server limits by address is not used up
by another kind. They run at a low priority, and pause between messages and attempts, as `KINDS` and the functions
say: they stand for clients on other machines, which take connections and the server's time, but not its processor.
Who is refused or cut off comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import socket
import urllib.error
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
from aiortc.rtp import RtpPacket
from lipstream import samples
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from .fuzz import START, Fuzzer, an_offer
from .server_client import Server
from .webrtc_client import Peer, Voice

GIVEN_UP = 60.0
"""Seconds after which a client leaves by itself."""
OUTCOME_LEFT = "left by itself"
CUT_OFF = "cut off"
STEP = 0.02
"""Seconds between the messages of a client that floods."""


@dataclass(frozen=True)
class Target:
    """What a kind attacks, and with what.

    Attributes: address: that connections of a kind come from. offer: SDP of a peer that does not exist. media:
    files to upload.
    """

    server: Server
    address: str
    offer: str
    media: dict[str, bytes]

    @property
    def port(self) -> int:
        return urlsplit(self.server.url).port or 80

    def head(self, method: str, path: str, token: str = "", *lines: str) -> bytes:
        """A request's line and headers."""
        given = [f"Authorization: Bearer {token}"] if token else []
        return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *given, *lines, "", ""]).encode()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Attempt = Callable[[Target, Fuzzer], Awaitable[str]]
"""What a client does from its connection to its end; returns how it ended."""


@contextlib.asynccontextmanager
async def connection(target: Target) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=(target.address, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def status(reader: asyncio.StreamReader) -> str:
    """Of the answer, once it comes."""
    line = await reader.readline()
    return line.split()[1].decode() if line.startswith(b"HTTP/") else CUT_OFF


async def answered(streams: Streams, piece: bytes, pause: float, most: int = 1 << 30) -> str:
    """Send `piece` again and again, `most` bytes in all, until there is an answer; its status."""
    reader, writer = streams
    answer = asyncio.create_task(status(reader))
    try:
        sent = 0
        while not answer.done():
            if sent < most and not writer.transport.is_closing():
                writer.write(piece)
                sent += len(piece)
                with contextlib.suppress(ConnectionError):  # the answer may have been sent before
                    await writer.drain()
            await asyncio.sleep(pause)
        return await answer
    finally:
        answer.cancel()


async def post(target: Target, path: str, body: bytes) -> str:
    """The answer's status."""
    async with connection(target) as (reader, writer):
        kind = "application/octet-stream" if path == "/v1/references" else "application/json"
        length = f"Content-Length: {len(body)}"
        writer.write(target.head("POST", path, target.server.token, f"Content-Type: {kind}", length) + body)
        return await status(reader)


def websocket(target: Target, *, reads: bool = True) -> Any:
    """A WebSocket with the token; one that does not read has small buffers."""
    plain = socket.socket()
    if not reads:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.bind((target.address, 0))
    plain.connect(("127.0.0.1", target.port))
    plain.setblocking(False)
    headers = {"Authorization": f"Bearer {target.server.token}"}
    queue = 16 if reads else 1
    return connect(
        target.server.address,
        sock=plain,
        additional_headers=headers,
        ping_interval=None,
        max_queue=queue,
        max_size=None,
    )


@contextlib.asynccontextmanager
async def read(socket: ClientConnection) -> AsyncIterator[asyncio.Task[None]]:
    """Read and forget what comes, in a task that ends when the connection is closed."""

    async def forget() -> None:
        async for _ in socket:
            pass

    reading = asyncio.create_task(forget())
    try:
        yield reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def endless_json(target: Target, fuzzer: Fuzzer) -> str:
    """800 KiB a second."""
    token, name = fuzzer.random.choice((("", "without"), (target.server.token, "with")))
    async with connection(target) as streams:
        lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        streams[1].write(target.head("POST", "/v1/webrtc", token, *lines) + b'9\r\n{"sdp": "\r\n')
        piece = b"4000\r\n" + b"a" * 0x4000 + b"\r\n"
        return f"{await answered(streams, piece, STEP)} {name} token"


async def half_headers(target: Target, fuzzer: Fuzzer) -> str:
    """One line of a header that does not end, each second."""
    async with connection(target) as streams:
        streams[1].write(target.head("GET", "/", target.server.token)[:-2])
        return await answered(streams, b"X-More: more\r\n", 1)


async def no_start(target: Target, fuzzer: Fuzzer) -> str:
    async with websocket(target) as socket, read(socket) as reading:
        await reading
        return str(socket.close_code)


async def storm(target: Target, fuzzer: Fuzzer) -> str:
    """Two hundred connections at once, held for half a second."""
    opening = (asyncio.open_connection("127.0.0.1", target.port, local_addr=(target.address, 0)) for _ in range(200))
    opened = [found for found in await asyncio.gather(*opening, return_exceptions=True) if isinstance(found, tuple)]
    try:
        await asyncio.sleep(0.5)
        refused = sum(reader.at_eof() or reader.exception() is not None for reader, _ in opened)
    finally:
        for _, writer in opened:
            writer.transport.abort()
    return "some of 200 cut off" if refused else "all of 200 open"


async def websocket_flood(target: Target, fuzzer: Fuzzer) -> str:
    """Interrupts, or sound of one sample and flushes, or pings, a thousand a second, for ten seconds."""
    messages = fuzzer.random.choice((['{"type": "interrupt"}'], [b"\1\0", '{"type": "flush"}'], []))
    async with websocket(target) as socket, read(socket) as reading:
        await socket.send(json.dumps(START))
        end = asyncio.get_running_loop().time() + 10
        while not reading.done() and asyncio.get_running_loop().time() < end:
            for message in messages * (20 // max(1, len(messages))):
                await socket.send(message)
            for _ in range(0 if messages else 20):
                await socket.ping()
            await asyncio.sleep(STEP)
        return OUTCOME_LEFT if not reading.done() else str(socket.close_code)


async def no_reading(target: Target, fuzzer: Fuzzer) -> str:
    """Speaks in real time, and sends pings, 25 a second; reads neither pictures nor pongs."""
    async with websocket(target, reads=False) as socket:
        await socket.send(json.dumps(START))
        while True:
            await socket.send(fuzzer.random.randbytes(1280))
            await socket.ping(fuzzer.random.randbytes(100))
            await asyncio.sleep(0.04)


async def slow_upload(target: Target, fuzzer: Fuzzer) -> str:
    """A megabyte that stops half way, or comes at a kilobyte a second."""
    async with connection(target) as streams:
        streams[1].write(target.head("POST", "/v1/references", target.server.token, "Content-Length: 1000000"))
        if fuzzer.random.random() < 0.5:
            return f"{await answered(streams, bytes(500_000), 0.1, most=500_000)} stopped"
        return f"{await answered(streams, bytes(100), 0.1)} trickled"


def hostile_media() -> dict[str, bytes]:
    """A picture with a colour profile of 256 MiB, and two pictures, of a face, that are 11 days apart."""
    profile = zlib.compressobj(1)
    packed = b"".join(profile.compress(bytes(1 << 24)) for _ in range(16)) + profile.flush()
    data, picture = b"x\0\0" + packed, cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    chunk = len(data).to_bytes(4, "big") + b"iCCP" + data + zlib.crc32(b"iCCP" + data).to_bytes(4, "big")
    with av.open(str(samples.FACE)) as container:
        face = next(container.decode(video=0)).reformat(format="yuv420p")
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = face.width, face.height, "yuv420p"
        for at in (0, 25 * 10**6):
            face.pts, face.time_base = at, Fraction(1, 25)
            container.mux(stream.encode(face))
        container.mux(stream.encode(None))
    return {"iCCP": picture[:33] + chunk + picture[33:], "11 days": file.getvalue()}  # 33: behind the size


async def hostile_upload(target: Target, fuzzer: Fuzzer) -> str:
    name = fuzzer.random.choice((*target.media, "random"))
    body = target.media.get(name) or fuzzer.random.randbytes(100_000)
    return f"{await post(target, '/v1/references', body)} {name}"


async def wrong_token(target: Target, fuzzer: Fuzzer) -> str:
    """As a header, or as a ticket of a WebSocket."""
    async with connection(target) as (reader, writer):
        if fuzzer.random.random() < 0.5:
            writer.write(target.head("GET", "/v1/ice", fuzzer.random.randbytes(16).hex()))
        else:
            path = f"/v1/session?ticket={fuzzer.characters('1.2.token.3')}".encode("ascii", "ignore").decode()
            lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
            writer.write(target.head("GET", path, "", *lines, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
        return await status(reader)


async def offers(target: Target, fuzzer: Fuzzer) -> str:
    """Twenty at once; malformed; one that never connects; one with 2000 candidates."""

    def body(sdp: str) -> bytes:
        return json.dumps({"type": "offer", "sdp": sdp, "start": {"type": "start"}}).encode()

    match fuzzer.random.choice(("twenty", "malformed", "malformed", "malformed", "never connects", "candidates")):
        case "twenty":
            each = await asyncio.gather(*(post(target, "/v1/webrtc", body(target.offer)) for _ in range(20)))
            return ", ".join(f"{count} x {code}" for code, count in sorted(Counter(each).items())) + " at once"
        case "malformed":
            return f"{await post(target, '/v1/webrtc', body(fuzzer.text(target.offer)))} malformed"
        case "candidates":
            line = "a=candidate:{} 1 udp 2130706431 127.0.0.1 {} typ host\r\n"
            many = "".join(line.format(i, 20_000 + i) for i in range(2000))
            sections = target.offer.replace("a=ice-ufrag", many + "a=ice-ufrag", 1)
            return f"{await post(target, '/v1/webrtc', body(sections))} many candidates"
        case name:
            return f"{await post(target, '/v1/webrtc', body(target.offer))} {name}"


async def webrtc_flood(target: Target, fuzzer: Fuzzer) -> str:
    """Two hundred messages a second on the data channel, and a packet of video with each ten, for ten seconds."""
    peer = Peer(Voice(lambda at, count: np.zeros(count, np.int16)))
    try:
        try:
            await peer.open(target.server)
        except urllib.error.HTTPError as error:
            return str(error.code)
        with contextlib.suppress(TimeoutError):
            await peer.until(lambda p: "started" in p.types() or "closed" in p.types(), 20)
        transport = peer.peer.getSenders()[0].transport
        end = asyncio.get_running_loop().time() + 10
        for number in itertools.count():
            if "closed" in peer.types() or peer.channel.readyState != "open":
                return next((f"closed {m['code']}" for m in peer.said if m["type"] == "closed"), CUT_OFF)
            if asyncio.get_running_loop().time() > end:
                break
            for _ in range(10):
                peer.channel.send(fuzzer.message({"type": "interrupt"}).encode(errors="replace").decode())
            packet = RtpPacket(payload_type=97, ssrc=1, sequence_number=number % 65536, payload=bytes(1000))
            await transport._send_rtp(packet.serialize())  # past the answer, by which no video is to be sent
            await asyncio.sleep(0.05)
        return OUTCOME_LEFT
    finally:
        await peer.close()


async def garbage(target: Target, fuzzer: Fuzzer) -> str:
    """Bytes and damaged requests over HTTP; bytes, damaged messages, nested and huge JSON over WebSocket."""
    kind = fuzzer.random.choice(("bytes", "request", "frames", "messages", "nested", "huge", "not UTF-8"))
    if kind in ("bytes", "request"):
        valid = target.head("POST", "/v1/tickets", target.server.token, "Content-Length: 2") + b"{}"
        async with connection(target) as (reader, writer):
            if kind == "request":
                writer.write(fuzzer.data(valid))
                writer.write_eof()
                return f"{await status(reader)} {kind}"
            for _ in range(20):
                if writer.transport.is_closing():
                    break
                writer.write(fuzzer.random.randbytes(500) + b"\r\n\r\n")
                await asyncio.sleep(STEP)
            return f"{await status(reader)} {kind}"
    async with websocket(target) as socket, read(socket) as reading:
        await socket.send(json.dumps(START))
        match kind:
            case "frames":
                socket.transport.write(fuzzer.random.randbytes(2000))
            case "nested":
                await socket.send("[" * 100_000)
            case "not UTF-8":
                await socket.send(b"\xff", text=True)
            case "huge":
                await socket.send('{"type": "' + "x" * (1 << 21))
            case _:
                for _ in range(60):
                    await socket.send(fuzzer.message(START).encode(errors="replace").decode())
                    await asyncio.sleep(STEP)
        await asyncio.wait({reading}, timeout=5)
        return f"{socket.close_code if reading.done() else OUTCOME_LEFT} {kind}"


@dataclass
class Kind:
    """Attributes: clients: at once. pause: seconds until one comes again. ended: how often clients ended how."""

    attempt: Attempt
    clients: int
    pause: float
    ended: Counter[str] = field(default_factory=Counter)


def kinds() -> dict[str, Kind]:
    return {
        "endless JSON": Kind(endless_json, 2, 1),
        "half headers": Kind(half_headers, 20, 0.5),
        "no start": Kind(no_start, 10, 0.5),
        "storms": Kind(storm, 1, 2),
        "WebSocket floods": Kind(websocket_flood, 2, 0.5),
        "no reading": Kind(no_reading, 2, 0.5),
        "slow uploads": Kind(slow_upload, 4, 0.5),
        "hostile media": Kind(hostile_upload, 2, 1),
        "wrong tokens": Kind(wrong_token, 2, 0.04),
        "offers": Kind(offers, 1, 0.5),
        "WebRTC floods": Kind(webrtc_flood, 1, 1),
        "garbage": Kind(garbage, 2, 0.2),
    }


async def _come_again(kind: Kind, target: Target, inputs: AsyncIterator[Fuzzer]) -> None:
    async for fuzzer in inputs:
        try:
            async with asyncio.timeout(GIVEN_UP):
                ended = await kind.attempt(target, fuzzer)
        except TimeoutError:
            ended = OUTCOME_LEFT
        except ConnectionClosed as error:
            ended = str(error.rcvd.code) if error.rcvd else CUT_OFF
        except InvalidStatus as error:
            ended = str(error.response.status_code)
        except (OSError, InvalidHandshake, EOFError):
            ended = CUT_OFF
        kind.ended[ended] += 1
        await asyncio.sleep(kind.pause)


async def _attack(server: Server, seconds: float, seed: int, media: dict[str, bytes]) -> dict[str, dict[str, int]]:
    offer, numbers = await an_offer(), itertools.count()

    async def inputs() -> AsyncIterator[Fuzzer]:
        for number in numbers:
            yield Fuzzer(seed, number)

    all_kinds = kinds()
    clients = [
        asyncio.create_task(_come_again(kind, Target(server, f"127.0.1.{at + 1}", offer, media), inputs()))
        for at, kind in enumerate(all_kinds.values())
        for _ in range(kind.clients)
    ]
    done, _ = await asyncio.wait(clients, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for client in clients:
        client.cancel()
    await asyncio.wait(clients, timeout=10)
    for client in done:
        client.result()
    return {name: dict(kind.ended.most_common()) for name, kind in all_kinds.items()}


def attack(url: str, token: str, seconds: float, seed: int, media: dict[str, bytes]) -> dict[str, dict[str, int]]:
    """Let all kinds of clients come for some seconds, in this process; how they ended, and how often, by kind."""
    os.nice(10)
    return asyncio.run(_attack(Server(url, token), seconds, seed, media))
