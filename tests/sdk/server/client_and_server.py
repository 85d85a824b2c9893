"""A real server in a separate process, and a client for it."""

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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lipstream import LipSyncEngine
from lipstream.server.protocol import HEADER, PCM
from lipstream.server.references import References
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
    # A machine that is busy with other tests is no overload.
    command = [sys.executable, "-m", "lipstream", "serve", "--port", str(port), "--max-late", "100", *options]
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
class Received:
    """What a client received. Attributes: pictures, sounds: (index, at, flags, payload). said: text messages."""

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
    """A client's session over a WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.received = socket, Received()

    @classmethod
    async def open(cls, server: Served, **start: Any) -> Client:
        client = cls(await connect(server.address, max_size=None))
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

    async def close(self) -> None:
        await self.socket.close()


def tone(seconds: float) -> Any:
    """A substitute for a voice: a tone whose loudness rises and falls."""
    t = np.arange(int(seconds * RATE)) / RATE
    return 0.4 * np.sin(2 * np.pi * 200 * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))


def bursts(start: int, samples: int, rate: int) -> Any:
    """A track of clicks that a mouth follows: half a second of 800 Hz each second; float64 in [-1, 1]."""
    t = (start + np.arange(samples)) / rate
    return 0.3 * np.sin(2 * np.pi * 800 * t) * (t % 1 < 0.5)


def chin(image: Any) -> float:
    """Brightness below the bundled face's lower lip, which `bursts` move; `image` uint8 [H, W, 3]."""
    h, w = image.shape[:2]
    return float(image[int(h * 0.65) : int(h * 0.8), int(w * 0.45) : int(w * 0.55)].mean())


def loudness(samples: Any) -> float:
    return float(abs(np.asarray(samples, np.float64)).mean())


def lead(pictures: list[tuple[float, float]], sounds: list[tuple[float, float]], step: float = 0.01) -> float:
    """Seconds by which pictures are ahead of sound: where (time, `chin`) goes best with (time, `loudness`)."""
    (seen_at, seen), (sound_at, sound) = (np.array(x).T for x in (pictures, sounds))
    times = np.arange(max(seen_at[0], sound_at[0]) + 0.5, min(seen_at[-1], sound_at[-1]) - 0.5, step)
    leads = np.arange(-0.4, 0.4, step)
    mouth = np.interp(times, seen_at, seen)
    scores = [np.corrcoef(mouth, np.interp(times + late, sound_at, sound))[0, 1] for late in leads]
    assert max(scores) > 0.6, f"the mouth does not follow the sound: {max(scores):.2f}"
    return float(leads[int(np.argmax(scores))])


@cache
def lead_of_the_student() -> float:
    """`lead` of frames from the engine: the mouth opens slightly before its sound."""
    engine = LipSyncEngine.load("tiny")
    references = References(engine)
    references.load_permanent()
    with engine.session(references.bundled) as session:
        session.push_audio(bursts(0, 12 * RATE, RATE), RATE)
        session.flush()
        frames = list(session)
    pictures = [(frame.index / 25, chin(frame.image)) for frame in frames]
    return lead(pictures, [(frame.index / 25, loudness(frame.audio)) for frame in frames])


def is_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"
