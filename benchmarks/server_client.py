"""Clients of `lipstream serve`, directly or behind a proxy: HTTP, and a session over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.server.protocol import HEADER, PCM
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Origin


@dataclass
class Server:
    """A server's address.

    Attributes:
        url: without the last slash. token: may be empty. tls: how its certificate is checked; None: as usual.
    """

    url: str
    token: str = ""
    tls: ssl.SSLContext | None = None

    @property
    def address(self) -> str:
        return f"ws{self.url.removeprefix('http')}/v1/session"

    @property
    def origin(self) -> str:
        """Of its own page."""
        return "/".join(self.url.split("/")[:3])

    def get(self, path: str) -> str:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: bytes | dict[str, Any]) -> dict[str, Any]:
        """The answer to `body`, as it is or as JSON."""
        data, kind = (body, "octet-stream") if isinstance(body, bytes) else (json.dumps(body).encode(), "json")
        headers = {"Content-Type": f"application/{kind}"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        found: dict[str, Any] = json.loads(self._ask(urllib.request.Request(self.url + path, data, headers)))
        return found

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/v1/metrics"), re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def wait_for(self, name: str, value: float, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.1)

    def wait_until_ready(self, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            try:
                self.get("/v1/health/ready")
            except OSError:  # no connection, or 502 and 503
                time.sleep(0.2)
            else:
                return

    def _ask(self, request: urllib.request.Request) -> str:
        with urllib.request.urlopen(request, timeout=30, context=self.tls) as answer:
            return str(answer.read().decode())


@contextmanager
def running(command: Sequence[str], log: Path, stop: int = signal.SIGINT) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes to `log`; ended by the signal `stop`, and after 20 s by force."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def held(process: int) -> tuple[float, int, int]:
    """Resident MiB, threads, and open files of a process. Linux."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{process}/fd"))
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"]), files


@dataclass
class Received:
    """What a client received.

    Attributes:
        pictures, sounds: (index, at, flags, payload). arrived: seconds on a clock, for each sound. said: text messages.
    """

    pictures: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    sounds: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)

    def add(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.said.append(json.loads(message))
            return
        kind, flags, _, index, at = HEADER.unpack_from(message)
        (self.sounds if kind == PCM else self.pictures).append((index, at, flags, message[HEADER.size :]))
        if kind == PCM:
            self.arrived.append(time.monotonic())

    def types(self) -> list[str]:
        return [message["type"] for message in self.said]


class Client:
    """A client's session over a WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.received = socket, Received()

    @classmethod
    async def open(cls, server: Server, **start: Any) -> Client:
        """Connect as a page does, with a ticket if there is a token, and start a session."""
        address = server.address
        if server.token:
            address += "?ticket=" + (await asyncio.to_thread(server.post, "/v1/tickets", b""))["ticket"]
        origin = Origin(server.origin) if server.token else None
        client = cls(await connect(address, max_size=None, ssl=server.tls, origin=origin))
        await client.until(lambda received: "hello" in received.types())
        await client.say("start", **start)
        await client.until(lambda received: "started" in received.types() or "error" in received.types())
        return client

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def speak(self, sound: Any) -> None:
        await self.socket.send((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())

    async def until(self, enough: Callable[[Received], bool], seconds: float = 30) -> Received:
        async with asyncio.timeout(seconds):
            while not enough(self.received):
                self.received.add(await self.socket.recv())
        return self.received

    async def rest(self) -> None:
        """Receive until the socket is closed: unread messages would stop the library before the closing one."""
        async for message in self.socket:
            self.received.add(message)

    async def close(self) -> None:
        await self.socket.close()
