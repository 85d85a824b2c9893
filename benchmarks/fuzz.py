"""Does anything that a client may send get more than a typed refusal out of the server?

Random changes of valid requests, messages, offers and files: characters and bytes replaced, lines and fields left out,
repeated and exchanged, numbers at the limits of their types. Requests, messages and offers go to the application
itself, without a network between; files are decoded in the sandbox, as uploads are.

  http       requests with any path, headers and body: refused or answered, below 500 (503: no place), in at most
             64 KiB, with the security headers
  websocket  text and bytes, 50 for each session
  sdp        WebRTC offers; one that is answered is closed
  media      videos, pictures and sound: read, or an error of a file, and no process left

It fails if an answer is none of these, at any error that the server logs as its own, and if memory grows by more than
96 MiB in the second half of a kind, since sessions fill the allocator's memory first. The seed and the number of an
input give that input again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import multiprocessing
import random
import string
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from lipstream.errors import LipStreamError
from lipstream.media.sandbox import SandboxedAudioReader, SandboxedReader
from tqdm import tqdm

from .common import main, memory_mib, parser, positive, write

# What only the application needs is imported below: each process of the sandbox imports this module, as the main one.

TOKEN = "the-token-of-this-run"
SHARES = {"http": 0.7, "websocket": 0.2, "sdp": 0.06, "media": 0.04}
MESSAGES = 50
MOST_ANSWER, MOST_GROWTH, MOST_FAILURES = 64 << 10, 96.0, 20
PATHS = ("/", "/v1/session", "/v1/webrtc", "/v1/references", "/v1/tickets", "/v1/ice", "/v1/metrics", "/v1/version")
PATHS += ("/v1/health/ready", "/openapi.json", "/docs", "/v1")
NUMBERS = (0, -1, 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf"))
START = {"type": "start", "reference": "bundled", "sample_rate": 16000, "channels": 1, "video": "jpeg", "seed": 42}


class UnheldError(Exception):
    """An input that got what it should not."""


class Fuzzer:
    """Changes valid things at random."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(f"{seed} {number}")

    def text(self, valid: str) -> str:
        """Some characters and lines changed."""
        lines = valid.splitlines(keepends=True)
        for _ in range(self.random.randint(1, 4)):
            at = self.random.randrange(max(1, len(lines)))
            match self.random.randrange(6):
                case 0:
                    del lines[at : at + self.random.randint(1, 4)]
                case 1:
                    lines[at:at] = lines[at : at + 1] * self.random.choice((1, 3, 40))
                case 2:
                    self.random.shuffle(lines)
                case 3 if lines:
                    lines[at] = self.characters(lines[at])
                case 4 if lines:
                    digits = [i for i, c in enumerate(lines[at]) if c.isdigit()]
                    if digits:
                        i = self.random.choice(digits)
                        lines[at] = lines[at][:i] + str(self.random.choice(NUMBERS)) + lines[at][i + 1 :]
                case _:
                    lines.insert(at, self.characters("a=" + "x" * self.random.choice((1, 80, 4000))) + "\r\n")
        return "".join(lines)

    def characters(self, valid: str) -> str:
        found = list(valid)
        for _ in range(self.random.randint(1, 5)):
            at = self.random.randrange(len(found) + 1)
            found[at : at + self.random.randint(0, 2)] = self.random.choice(
                ("", "\0", "\r\n", "\ud800", "\u2028", "%00", "{", '"', "é" * 20, self.random.choice(string.printable))
            )
        return "".join(found)

    def data(self, valid: bytes) -> bytes:
        """Some bytes changed, left out or repeated; or the end cut."""
        found = bytearray(valid)
        for _ in range(self.random.choice((1, 2, 8, 64))):
            at = self.random.randrange(len(found) or 1)
            match self.random.randrange(5):
                case 0:
                    del found[at : at + self.random.randint(1, 64)]
                case 1:
                    found[at:at] = found[at : at + self.random.randint(1, 256)]
                case 2:
                    found[at : at + 4] = self.random.choice(
                        (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0")
                    )
                case _:
                    found[at : at + 1] = bytes([self.random.randrange(256)])
        if self.random.random() < 0.2:
            del found[self.random.randrange(len(found) or 1) :]
        return bytes(found)

    def message(self, valid: dict[str, Any]) -> str:
        """JSON with fields changed, or changed as text."""
        fields = dict(valid)
        for _ in range(self.random.randint(0, 3)):
            name = self.random.choice([*fields, "more", "type"])
            other = (None, True, [], {}, "", "x" * 5000, [[]] * 50, *NUMBERS, "close", "flush", "interrupt", "start")
            fields[name] = self.random.choice(other)
        text = json.dumps(fields)
        match self.random.randrange(8):
            case 0:
                return self.characters(text)
            case 1:
                return "[" * self.random.choice((10, 3000)) + text
            case _:
                return text


class _Logged(logging.Handler):
    """Errors that the server logs as its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record)[-2000:])


@asynccontextmanager
async def application() -> Any:
    """The application, its engine warm."""
    from lipstream.server.app import create_app
    from lipstream.server.settings import Settings

    settings = Settings(token=TOKEN, requests_per_second=1e6, max_sessions=8, start_within=1.0, reference_dir="")
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        while not app.state.lipstream.ready:
            await asyncio.sleep(0.05)
        yield app


async def an_offer() -> str:
    """A valid offer."""
    from .webrtc_client import Peer, Voice

    peer = Peer(Voice(lambda at, count: np.zeros(count, np.int16)))
    await peer.peer.setLocalDescription(await peer.peer.createOffer())
    text = str(peer.peer.localDescription.sdp)
    await peer.close()
    return text


async def request(
    app: Any, fuzzer: Fuzzer, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> int:
    """One request; its status.

    Raises:
        UnheldError: the answer is not one that it may be.
    """
    parts = [body[i : i + 700] for i in range(0, len(body), 700)] or [b""]
    given, answer, size = 0, {}, 0

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given == len(parts) or fuzzer.random.random() < 0.002:
            return {"type": "http.disconnect"}
        given += 1
        return {"type": "http.request", "body": parts[given - 1], "more_body": given < len(parts)}

    async def send(message: dict[str, Any]) -> None:
        nonlocal size
        if message["type"] == "http.response.start":
            answer.update(status=message["status"], headers={name.lower() for name, _ in message["headers"]})
        size += len(message.get("body", b""))

    query = fuzzer.characters("ticket=a").encode(errors="replace") if fuzzer.random.random() < 0.3 else b""
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path}
    scope |= {"raw_path": path.encode(errors="replace"), "query_string": query, "root_path": "", "scheme": "http"}
    scope |= {"headers": headers, "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 80), "state": {}}
    await asyncio.wait_for(app(scope, receive, send), 30)
    if not answer:
        return 0  # the client had left
    if answer["status"] >= 500 and answer["status"] != 503:
        raise UnheldError(f"status {answer['status']}")
    if size > MOST_ANSWER and path != "/":
        raise UnheldError(f"an answer of {size} bytes")
    if b"x-content-type-options" not in answer["headers"]:
        raise UnheldError("an answer without the security headers")
    return int(answer["status"])


async def http(app: Any, fuzzer: Fuzzer, offer: str) -> str:
    choose = fuzzer.random.choice
    path = choose(PATHS)
    if fuzzer.random.random() < 0.3:
        path = "/" + fuzzer.characters(path[1:])
    headers = {"host": "localhost", "authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    for name in list(headers):
        if fuzzer.random.random() < 0.2:
            headers[name] = fuzzer.characters(headers[name])
    if fuzzer.random.random() < 0.2:
        headers[choose(("content-length", "origin", "range", "x-forwarded-for", "transfer-encoding"))] = choose(
            ("0", "-1", "1e9", "99999999999999999999", "null", "http://evil", "\xff", "bytes=0-")
        )
    body = fuzzer.message({"sdp": offer[:200], "type": "offer", "start": START, "codec": "vp8"}).encode(
        errors="replace"
    )
    if fuzzer.random.random() < 0.3:
        body = fuzzer.data(body)
    pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    method = choose(("GET", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "X\0"))
    return str(await request(app, fuzzer, method, path, pairs, body))


async def sdp(app: Any, fuzzer: Fuzzer, offer: str) -> str:
    body = {"sdp": fuzzer.text(offer), "type": "offer", "start": START, "codec": fuzzer.random.choice(("vp8", "h264"))}
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())]
    headers.append((b"content-type", b"application/json"))
    status = await request(app, fuzzer, "POST", "/v1/webrtc", headers, json.dumps(body).encode())
    while len(app.state.lipstream.connections) > 6:  # they end by themselves; until then there is no place
        await asyncio.sleep(0.02)
    return str(status)


async def websocket(app: Any, fuzzer: Fuzzer) -> str:
    """One session with `MESSAGES` messages; how it ended."""
    sound = np.random.default_rng(fuzzer.random.randrange(2**32)).integers(-9000, 9000, 4000, np.int16).tobytes()
    messages: list[dict[str, Any]] = [{"type": "websocket.connect"}]
    first = START if fuzzer.random.random() < 0.7 else {"type": "flush"}
    messages.append({"type": "websocket.receive", "text": json.dumps(first)})
    for _ in range(MESSAGES):
        if fuzzer.random.random() < 0.3:
            messages.append(
                {"type": "websocket.receive", "bytes": fuzzer.data(sound[: fuzzer.random.choice((1, 7, 640, 8000))])}
            )
        else:
            kind = fuzzer.random.choice(({"type": "flush"}, {"type": "interrupt"}, START))
            text = fuzzer.message(kind).encode("utf-8", "replace").decode()  # as a server's decoder gives it
            messages.append({"type": "websocket.receive", "text": text})
    waiting, ended = iter(messages), "left"

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return next(waiting, {"type": "websocket.disconnect", "code": 1006})

    async def send(message: dict[str, Any]) -> None:
        nonlocal ended
        if message["type"] == "websocket.close":
            ended = str(message.get("code", 1000))

    scope = {"type": "websocket", "asgi": {"version": "3.0"}, "http_version": "1.1", "path": "/v1/session"}
    scope |= {"raw_path": b"/v1/session", "query_string": b"", "root_path": "", "scheme": "ws", "subprotocols": []}
    scope |= {"headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())]}
    scope |= {"client": ("127.0.0.1", 5), "server": ("127.0.0.1", 80), "extensions": {}, "state": {}}
    await asyncio.wait_for(app(scope, receive, send), 60)
    if ended == "1011":
        raise UnheldError("the session ended with an internal error")
    return ended


def media_files() -> dict[str, bytes]:
    """A small valid file of each kind."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, codec, format in (
            ("a.mp4", "libx264", "yuv420p"),
            ("a.mkv", "ffv1", "yuv420p10le"),
            ("a.webm", "libvpx-vp9", "yuv420p"),
            ("a.mov", "prores_ks", "yuv422p10le"),
            ("a.avi", "mjpeg", "yuvj420p"),
            ("a.gif", "gif", "rgb8"),
            ("a.png", "png", "rgb24"),
            ("a.jpg", "mjpeg", "yuvj420p"),
            ("a.bmp", "bmp", "bgr24"),
            ("a.wav", "", ""),
            ("a.ogg", "", ""),
            ("a.mp3", "", ""),
            ("a.flac", "", ""),
        ):
            path = Path(folder, name)
            options = {"update": "1"} if name in ("a.png", "a.jpg", "a.bmp") else {}
            with av.open(str(path), "w", options=options) as container:
                if codec:
                    stream = container.add_stream(codec, rate=25)
                    stream.width, stream.height, stream.pix_fmt = 32, 32, format
                    for i in range(1 if options else 6):
                        picture = np.full((32, 32, 3), 30 * i + 20, np.uint8)
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture).reformat(format=format)))
                else:
                    sound = {"a.wav": "pcm_s16le", "a.ogg": "libopus", "a.mp3": "libmp3lame", "a.flac": "flac"}[name]
                    stream = container.add_stream(sound, rate=16_000, layout="mono")
                    wave = (9000 * np.sin(np.arange(4096) / 9)).astype(np.int16)[None]
                    frame = av.AudioFrame.from_ndarray(wave, "s16", "mono")
                    frame.sample_rate = 16_000
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            found[name] = path.read_bytes()
    return found


def media(fuzzer: Fuzzer, files: dict[str, bytes], folder: Path) -> str:
    name = fuzzer.random.choice(list(files))
    path = folder / name
    path.write_bytes(fuzzer.data(files[name]))
    sound = name.endswith((".wav", ".ogg", ".mp3", ".flac"))
    try:
        if sound:
            for _ in itertools.islice(SandboxedAudioReader(path, deadline=20), 50):
                pass
        else:
            reader = SandboxedReader(path, deadline=20)
            try:
                for _ in itertools.islice(reader.pictures(), 50):
                    pass
            finally:
                reader.close()
    except LipStreamError as error:
        return error.code
    finally:
        path.unlink()
    return "read"


class _Report:
    """What became of the inputs. Attributes: outcomes: by kind. failures: of inputs that were not held."""

    def __init__(self, seed: int) -> None:
        self.seed, self.failures = seed, list[str]()
        self.outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in SHARES}
        self.logged = _Logged()
        logging.getLogger().addHandler(self.logged)

    @contextmanager
    def input(self, kind: str, number: int) -> Iterator[Counter[str]]:
        """Yield the outcomes to add to; note any error, the server's own included."""
        try:
            yield self.outcomes[kind]
            if self.logged.found:
                raise UnheldError(f"the server logged {self.logged.found[0]}")
        except Exception as error:
            failure = f"{kind} {number} of seed {self.seed}: {type(error).__name__}: {error}"
            tqdm.write(failure)
            self.failures.append(failure)
            if len(self.failures) >= MOST_FAILURES:
                raise UnheldError("too many failures") from error
        finally:
            self.logged.found.clear()


def run(args: argparse.Namespace) -> bool:
    counts = {kind: max(1, round(args.inputs * share)) for kind, share in SHARES.items()}
    counts["websocket"] = max(1, counts["websocket"] // MESSAGES)
    report = _Report(args.seed)
    seconds: dict[str, float] = {}
    memory: dict[str, list[float]] = defaultdict(list)

    async def of_the_application() -> None:
        offer = await an_offer()
        async with application() as app:
            kinds: dict[str, Callable[[Fuzzer], Any]] = {
                "http": lambda fuzzer: http(app, fuzzer, offer),
                "websocket": lambda fuzzer: websocket(app, fuzzer),
                "sdp": lambda fuzzer: sdp(app, fuzzer, offer),
            }
            for kind, send in kinds.items():
                begun = time.monotonic()
                for number in tqdm(range(counts[kind]), kind, unit="input"):
                    with report.input(kind, number) as outcomes:
                        outcomes[await send(Fuzzer(args.seed, number))] += 1
                    if number in (counts[kind] // 10, counts[kind] // 2):
                        memory[kind].append(memory_mib())
                seconds[kind] = time.monotonic() - begun
                memory[kind].append(memory_mib())
            while app.state.lipstream.connections:
                await asyncio.sleep(0.05)

    asyncio.run(of_the_application())
    files, begun = media_files(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in tqdm(range(counts["media"]), "media", unit="input"):
            with report.input("media", number) as outcomes:
                outcomes[media(Fuzzer(args.seed, number), files, Path(folder))] += 1
    seconds["media"] = time.monotonic() - begun
    left = len(multiprocessing.active_children())
    inputs = {kind: count * (MESSAGES if kind == "websocket" else 1) for kind, count in counts.items()}
    growth = {kind: found[-1] - found[1] for kind, found in memory.items()}
    for kind, found in report.outcomes.items():
        print(f"{kind:10} {inputs[kind]:7} inputs in {seconds[kind]:6.0f} s: {dict(found.most_common())}")
    for kind, found in memory.items():
        print(f"{kind:10} memory in MiB after a tenth, a half and all: {', '.join(f'{mib:.0f}' for mib in found)}")
    print(f"{left} processes left")
    found = {kind: dict(outcomes) for kind, outcomes in report.outcomes.items()}
    results = {"inputs": inputs, "seconds": seconds, "outcomes": found, "failures": report.failures}
    write(args.json, "fuzz", args, results | {"memory_mib": memory, "processes_left": left})
    return not report.failures and max(growth.values()) <= MOST_GROWTH and not left


def build_parser() -> argparse.ArgumentParser:
    options = parser("fuzz", __doc__, bundle=False, least={"inputs": 300})
    options.add_argument("--inputs", type=positive, default=100_000, help="in all (default 100000)")
    options.add_argument("--seed", type=int, default=0, help="of the inputs (default 0)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
