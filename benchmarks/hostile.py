"""Do honest clients get what they should while hostile ones attack the server, and is nothing left of those?

Two clients of `lipstream serve` speak over WebSocket, one utterance of five seconds after the other: alone for --alone
seconds, and then beside twelve kinds of hostile clients for --minutes. Those are in a process of their own, at a
low priority, paced, and come again when they are refused or cut off (hostile_clients.py).

It fails unless
  - the sound of both comes back whole, sample by sample, without gaps on its clock, and neither is cut off;
  - 99% of their frames are at most 100 ms later than 99% of those alone. A frame is late by what it comes after the
    time at which it would be played if its utterance had begun when it was sent;
  - the memory of the server and its helpers grows by at most 64 MiB after the first fifth; decoders of uploads, one at
    a time, in processes that end with them and may take 3 GiB, are reported beside it;
  - the log has no traceback, and at most 20 lines a second and 400 more;
  - afterwards the server is ready, as many sessions as before can be opened, and it has no more processes and
    descriptors than before; of the uploads that it accepted it keeps eight, each in a temporary file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.server.protocol import HEADER, PCM
from websockets.exceptions import ConnectionClosed

from .common import duration, in_fresh_process, main, parser, positive, write
from .hostile_clients import attack, hostile_media
from .overload import is_ready
from .server_client import Client, Received, Server, held, running
from .spoken_session import FPS, SECONDS, Session, check_sound, speech, spoken_frames

PORT, TOKEN = 8452, "the-token-of-this-run"
HONEST = 2
PAUSE = 0.5
"""Seconds between two utterances."""
MOST_LATER, MOST_GROWTH = 0.1, 64.0
LINES_A_SECOND, MORE_LINES, LINE = 20, 400, 500
"""Of the log; LINE: bytes of a line, on average."""
SPARE_FILES, KEPT = 2, 8
"""Descriptors that may be more at the end: of any kind, of uploads."""
RECOVERY = 90.0
"""Seconds in which everything of the hostile clients must be gone: a decoder may take 60."""


class _Received(Received):
    """Without the data of pictures, which nothing looks at."""

    def add(self, message: str | bytes) -> None:
        is_picture = isinstance(message, bytes) and message[0] != PCM
        super().add(message[: HEADER.size] if is_picture else message)


@dataclass
class Honest:
    """A client that speaks. Attributes: said: when each utterance was sent. fault: why it could not go on."""

    client: Client
    said: list[float] = field(default_factory=list)
    fault: str = ""

    @classmethod
    async def open(cls, server: Server) -> Honest:
        client = await Client.open(server, reference="bundled", video="jpeg", sample_rate=speech()[1])
        client.received = _Received()
        return cls(client)

    async def speak(self, ended: asyncio.Event) -> None:
        """One utterance after the other until `ended`; then close the session."""
        reading = asyncio.create_task(self.client.rest())
        sound, rate = speech()
        try:
            while not ended.is_set():
                self.said.append(time.monotonic())
                for at in range(0, len(sound), rate):
                    await self.client.socket.send(sound[at : at + rate].tobytes())
                await self.client.say("flush")
                async with asyncio.timeout(60):
                    while self.client.received.types().count("segment_end") < len(self.said):
                        if reading.done():
                            raise ConnectionError(f"cut off with {self.client.socket.close_code}")
                        await asyncio.sleep(0.05)
                await asyncio.sleep(PAUSE)
            await self.client.say("close")
            await reading
        except (OSError, ConnectionClosed, TimeoutError) as error:
            self.fault = f"{type(error).__name__}: {error}"
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def faults(self) -> list[str]:
        """What was wrong with the session."""
        sound, rate = speech()
        session = Session("WebSocket, jpeg", False)
        session.check(not self.fault, self.fault)
        session.check(self.client.socket.close_code == 1000, f"closed with {self.client.socket.close_code}")
        session.check("error" not in self.client.received.types(), "errors")
        if not self.fault:
            check_sound(session, self.client.received, [np.tile(sound, len(self.said))], rate)
        return session.faults

    def late(self) -> tuple[list[float], list[float]]:
        """When each spoken frame arrived, and seconds by which it was late."""
        arrived = [self.client.received.arrived[number] for number in spoken_frames(self.client.received)]
        length = SECONDS * FPS
        begun = [self.said[at // length] + at % length / FPS for at in range(len(arrived))]
        return arrived, [at - due for at, due in zip(arrived, begun, strict=True)]


def summary(clients: list[Honest], begin: float, end: float) -> dict[str, Any]:
    """What they received in a time."""
    late: list[float] = []
    pictures = 0
    for client in clients:
        shown = {index for index, *_ in client.client.received.pictures}
        numbers = spoken_frames(client.client.received)
        for number, arrived, lateness in zip(numbers, *client.late(), strict=True):
            if begin <= arrived < end:
                late.append(lateness)
                pictures += client.client.received.sounds[number][0] in shown
    return {
        "frames": len(late),
        "pictures_share": pictures / max(len(late), 1),
        "late_ms": {f"p{share}": 1000 * float(np.percentile(late or [0.0], share)) for share in (50, 95, 99, 100)},
    }


def children(process: int) -> list[int]:
    """Of a process. Linux."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{process}/task"):
            found += [int(pid) for pid in Path(f"/proc/{process}/task/{task}/children").read_text().split()]
    except OSError:  # it has ended meanwhile
        return []
    return found


def memory(process: int) -> tuple[float, float]:
    """Resident MiB of a server with its helpers, which are its children, and of decoders, the children of those."""
    helpers = children(process)
    decoders = [decoder for helper in helpers for decoder in children(helper)]
    return sum(map(_resident, (process, *helpers))), sum(map(_resident, decoders))


def _resident(process: int) -> float:
    try:
        return held(process)[0]
    except (OSError, KeyError):  # it has ended, KeyError: without being waited for
        return 0.0


def files(process: int) -> tuple[int, int]:
    """Open files of a process that have a name, and those that have none: frames of uploads."""
    found = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(descriptor))
    unnamed = sum(name.endswith(" (deleted)") for name in found)
    return len(found) - unnamed, unnamed


def state_of(process: int) -> dict[str, int]:
    named, unnamed = files(process)
    processes = 1 + sum(1 + len(children(helper)) for helper in children(process))
    return {"processes": processes, "files": named, "uploads": unnamed}


async def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether something holds within some seconds."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.5)
    return True


async def open_all(server: Server, most: int) -> int:
    """How many sessions can be opened at once, up to `most`."""
    opened: list[Client] = []
    for _ in range(most):
        try:
            opened.append(await Client.open(server, reference="bundled"))
        except (ConnectionClosed, TimeoutError):
            break
    for client in opened:
        await client.close()
    return len(opened)


async def measure(server: Server, process: int, args: argparse.Namespace) -> dict[str, Any]:
    await asyncio.to_thread(_start_helpers, server)
    assert await open_all(server, args.sessions) == args.sessions
    await until(lambda: server.metric("lipstream_sessions_active") == 0, 10)
    before, media = state_of(process), await asyncio.to_thread(hostile_media)
    print(f"before: {before}", flush=True)
    clients = [await Honest.open(server) for _ in range(HONEST)]
    ended = asyncio.Event()
    talking = [asyncio.create_task(client.speak(ended)) for client in clients]
    alone = time.monotonic()
    await asyncio.sleep(args.alone)
    print("the hostile clients come", flush=True)
    beside, seconds = time.monotonic(), 60 * args.minutes
    attacking = asyncio.create_task(
        asyncio.to_thread(in_fresh_process, attack, server.url, server.token, seconds, args.seed, media)
    )
    measured = []
    while not attacking.done():
        await asyncio.wait({attacking}, timeout=1)
        measured.append(memory(process))
    kinds = await attacking
    over = time.monotonic()
    print(f"they left after {over - beside:.0f} s", flush=True)
    ended.set()
    await asyncio.gather(*talking)
    ready = await until(lambda: is_ready(server), RECOVERY)
    gone = await until(lambda: server.metric("lipstream_sessions_active") == 0, RECOVERY)
    places = await open_all(server, args.sessions)

    def is_as_before() -> bool:
        now = state_of(process)
        spare = {"processes": 0, "files": SPARE_FILES, "uploads": KEPT}
        return all(now[name] <= before[name] + spare[name] for name in now)

    clean = await until(is_as_before, RECOVERY)
    after = state_of(process)
    rows = {"alone": summary(clients, alone, beside), "beside": summary(clients, beside, over)}
    faults = [f"client {number}: {fault}" for number, client in enumerate(clients) for fault in client.faults()]
    later = (rows["beside"]["late_ms"]["p99"] - rows["alone"]["late_ms"]["p99"]) / 1000
    fifth = max(1, len(measured) // 5)
    first = max(own for own, _ in measured[:fifth])
    growth = max(own for own, _ in measured[fifth:] or measured) - first
    checks = {
        f"99% of the frames are up to {1000 * later:.0f} ms later than alone": later <= MOST_LATER or args.quick,
        f"memory grew by {growth:.0f} MiB": growth <= MOST_GROWTH or args.quick,
        "the server is not ready": ready,
        "sessions are left": gone,
        f"only {places} of {args.sessions} sessions can be opened": places == args.sessions,
        f"{after} is left, {before} before": clean,
    }
    faults += [fault for fault, holds in checks.items() if not holds]
    faults += [f"no client of the kind {name} ended" for name, ends in kinds.items() if not ends and not args.quick]
    return {
        "honest": rows,
        "later_ms": 1000 * later,
        "hostile": kinds,
        "memory_mib": {
            "first_fifth": first,
            "growth": growth,
            "by_fifth": [max(own for own, _ in measured[at : at + fifth]) for at in range(0, len(measured), fifth)],
            "decoders_at_most": max(decoders for _, decoders in measured),
        },
        "before": before,
        "after": after,
        "faults": faults,
    }


def _start_helpers(server: Server) -> None:
    """An upload that is refused: the process from which decoders are forked stays."""
    with contextlib.suppress(urllib.error.HTTPError):
        server.post("/v1/references", b"no video")


def log_faults(text: str, seconds: float) -> list[str]:
    """What is wrong with the server's log of some seconds."""
    lines = int(LINES_A_SECOND * seconds) + MORE_LINES
    checks = {
        "the server's log has a traceback": "Traceback" not in text,
        f"the server's log has {text.count(chr(10))} lines": text.count("\n") <= lines,
        f"the server's log has {len(text)} bytes": len(text) <= lines * LINE,
    }
    return [fault for fault, holds in checks.items() if not holds]


def run(args: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        log, begun = Path(temporary, "server.log"), time.monotonic()
        sizes = ["--max-sessions", str(args.sessions), "--threads", str(args.threads), "--port", str(PORT)]
        limits = ["--drain", "1", "--max-late", str(args.max_late), "--upload-mb", "8", "--token", TOKEN]
        command = [sys.executable, "-m", "lipstream", "serve", "--bundle", args.bundle, *sizes, *limits]
        with running(command, log) as process:
            server = Server(f"http://127.0.0.1:{PORT}", TOKEN)
            server.wait_until_ready(process, log)
            results = asyncio.run(measure(server, process.pid, args))
        text = log.read_text()
    results["log"] = {"lines": text.count("\n"), "bytes": len(text)}
    found = log_faults(text, time.monotonic() - begun)
    results["faults"] += found
    if found:
        print(text[-20_000:])
    for name, row in results["honest"].items():
        late = ", ".join(f"{share} {milliseconds:.0f}" for share, milliseconds in row["late_ms"].items())
        print(f"{name:6} {row['frames']} frames, {row['pictures_share']:.1%} with a picture; late by {late} ms")
    for name, ends in results["hostile"].items():
        print(f"{name:16} {sum(ends.values()):6} attempts: {ends}")
    print(f"memory {results['memory_mib']}, log {results['log']}, {results['after']} at the end")
    for fault in results["faults"]:
        print(f"failed: {fault}")
    write(args.json, "hostile", args, results)
    return not results["faults"]


def build_parser() -> argparse.ArgumentParser:
    options = parser("hostile", __doc__, least={"minutes": 0.2, "alone": 6.0, "max_late": 100.0})
    options.add_argument("--minutes", type=float, default=15, help="beside hostile clients (default 15)")
    options.add_argument("--alone", type=duration, default=60, help="seconds before them (default 60)")
    options.add_argument(
        "--sessions",
        type=positive,
        default=4,
        help="that the server admits, from 2 on (default 4); more than it can run delays the honest ones by itself",
    )
    options.add_argument("--max-late", type=float, default=1, help="of the server: more where others use the machine")
    options.add_argument("--seed", type=int, default=0, help="of what hostile clients send (default 0)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
