"""A real server in a process of its own, and a client for it: a session as a program has it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.server.protocol import HEADER, PCM
from websockets.asyncio.client import ClientConnection, connect

RATE = 16_000


@dataclass
class Served:
    """A server. Attributes: port, process, log."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/session"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/v1/metrics"), re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def wait_for(self, name: str, value: float, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.1)


@contextmanager
def run_server(folder: Path, *options: str) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [sys.executable, "-m", "lipstream", "serve", "--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output)
    served = Served(port, process, log)
    try:
        end = time.monotonic() + 90
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            try:
                served.get("/v1/health/ready")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Heard:
    """What a client was sent. Attributes: pictures, sounds: (index, at, flags, payload). said: text messages."""

    pictures: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    sounds: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)

    def add(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.said.append(json.loads(message))
            return
        kind, flags, _, index, at = HEADER.unpack_from(message)
        (self.sounds if kind == PCM else self.pictures).append((index, at, flags, message[HEADER.size :]))

    def types(self) -> list[str]:
        return [message["type"] for message in self.said]


class Client:
    """A session as a program has it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.heard = socket, Heard()

    @classmethod
    async def open(cls, server: Served, **start: Any) -> Client:
        client = cls(await connect(server.address, max_size=None))
        await client.until(lambda heard: "hello" in heard.types())
        await client.say("start", **start)
        await client.until(lambda heard: "started" in heard.types() or "error" in heard.types())
        return client

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def speak(self, sound: Any) -> None:
        await self.socket.send((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())

    async def until(self, enough: Callable[[Heard], bool], seconds: float = 30) -> Heard:
        async with asyncio.timeout(seconds):
            while not enough(self.heard):
                self.heard.add(await self.socket.recv())
        return self.heard

    async def close(self) -> None:
        await self.socket.close()


def tone(seconds: float) -> Any:
    """A voice, nearly: a tone whose loudness comes and goes."""
    t = np.arange(int(seconds * RATE)) / RATE
    return 0.4 * np.sin(2 * np.pi * 200 * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))


def is_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"
