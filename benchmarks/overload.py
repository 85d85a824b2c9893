"""What do clients get while the server's machine is too slow, and after it?

Clients of `lipstream serve` speak without a pause, a second of sound each second, in three phases: on a machine that
does nothing else; while --busy processes each take a core; and after them. In each phase: how late sound is, how many
of its frames have a picture, and whether the server says that it is degraded, is not ready, refuses a new session.

It fails unless sound is at most --most seconds late in every phase, without gaps on its clock, and unless the server is
ready again at the end, no session degraded. Sound is late by what it comes later than the first of its client.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.server.protocol import IDLE
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from .common import duration, main, parser, positive, write
from .proxied import SHARES
from .server_client import Client, Server, running
from .spoken_session import FPS, speech

PORT = 8451
BUSY = [sys.executable, "-c", "while True: pass"]


@dataclass
class Phase:
    """Attributes: begin, end: on the monotonic clock. ready: each second. refused: whether a new session was."""

    name: str
    begin: float
    end: float
    ready: list[bool]
    refused: bool


async def talk(client: Client, end: float) -> None:
    """Speak until `end`, a second of sound each second."""
    sound, rate = speech()
    begun, said = time.monotonic(), 0
    while time.monotonic() < end:
        await client.socket.send(np.roll(sound, -said * rate)[:rate].tobytes())
        said += 1
        await asyncio.sleep(max(0.0, begun + said - 0.5 - time.monotonic()))


def is_ready(server: Server) -> bool:
    try:
        server.get("/v1/health/ready")
    except OSError:
        return False
    return True


async def is_refused(server: Server) -> bool:
    """Whether a further session is refused; if not, it is closed at once."""
    try:
        client = await Client.open(server, reference="bundled", video="jpeg", sample_rate=speech()[1])
    except ConnectionClosed as error:
        if error.rcvd is None or error.rcvd.code != CloseCode.TRY_AGAIN_LATER:
            raise
        return True
    await client.close()
    return False


async def watch(server: Server, name: str, seconds: float) -> Phase:
    """Let a phase pass, and ask the server each second."""
    begin, ready = time.monotonic(), []
    while time.monotonic() < begin + seconds - 2:
        await asyncio.sleep(1)
        ready.append(await asyncio.to_thread(is_ready, server))
    refused = await is_refused(server)
    await asyncio.sleep(max(0.0, begin + seconds - time.monotonic()))
    return Phase(name, begin, time.monotonic(), ready, refused)


async def measure(server: Server, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rate = speech()[1]
    clients = [
        await Client.open(server, reference="bundled", video=args.video, sample_rate=rate) for _ in range(args.clients)
    ]
    listening = [asyncio.create_task(client.rest()) for client in clients]
    end = time.monotonic() + args.quiet + args.stress + args.after
    talking = [asyncio.create_task(talk(client, end)) for client in clients]
    phases = [await watch(server, "quiet", args.quiet)]
    with ExitStack() as stack:
        for number in range(args.busy):
            stack.enter_context(running(BUSY, folder / f"busy-{number}.log"))
        phases.append(await watch(server, "busy", args.stress))
    phases.append(await watch(server, "after", args.after))
    await asyncio.gather(*talking)
    for client in clients:
        await client.say("close")
    await asyncio.gather(*listening)
    rows = {phase.name: summary(phase, clients, rate) for phase in phases}
    faults = [
        f"sound is {row['late_ms']['max']:.0f} ms late while {name}"
        for name, row in rows.items()
        if row["late_ms"]["max"] > 1000 * args.most
    ]
    for number, client in enumerate(clients):
        sounds = client.received.sounds
        if [at for _, at, _, _ in sounds] != [i * rate // FPS for i in range(len(sounds))]:
            faults.append(f"the clock of client {number} has a gap")
        if client.socket.close_code != 1000:
            faults.append(f"client {number} was closed with {client.socket.close_code}")
    if not rows["after"]["ready_at_end"] or rows["after"]["refused"]:
        faults.append("the server did not recover")
    return {"phases": rows, "faults": faults}


def summary(phase: Phase, clients: list[Client], rate: int) -> dict[str, Any]:
    """What the clients received in a phase."""
    late: list[float] = []
    spoken = shown = 0
    for client in clients:
        received = client.received
        delays = np.array(received.arrived) - np.array([at for _, at, _, _ in received.sounds]) / rate
        pictures = {index for index, *_ in received.pictures}
        speaking = [i for i, (_, _, flags, _) in enumerate(received.sounds) if not flags & IDLE]
        first = delays[speaking[0]]
        chosen = [i for i in speaking if phase.begin <= received.arrived[i] < phase.end]
        late += [delays[i] - first for i in chosen]
        spoken += len(chosen)
        shown += sum(received.sounds[i][0] in pictures for i in chosen)
    return {
        "frames": spoken,
        "pictures_share": shown / max(spoken, 1),
        "late_ms": {name: 1000 * float(np.percentile(late or [0.0], share)) for name, share in SHARES.items()},
        "ready_share": sum(phase.ready) / max(len(phase.ready), 1),
        "ready_at_end": bool(phase.ready and phase.ready[-1]),
        "refused": phase.refused,
    }


def run(args: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log = folder / "server.log"
        sizes = ["--max-sessions", str(args.clients + 1), "--threads", str(args.threads), "--port", str(PORT)]
        command = [sys.executable, "-m", "lipstream", "serve", "--bundle", args.bundle, "--drain", "1", *sizes]
        with running(command, log) as process:
            server = Server(f"http://127.0.0.1:{PORT}")
            server.wait_until_ready(process, log)
            results = asyncio.run(measure(server, args, folder))
            results["skipped"] = server.metric("lipstream_pictures_skipped_total")
        if "Traceback" in (text := log.read_text()):
            results["faults"].append("the server's log has a traceback")
            print(text)
    for name, row in results["phases"].items():
        late = row["late_ms"]
        print(
            f"{name:6} {row['frames']} frames, {row['pictures_share']:.0%} with a picture; sound late by "
            f"{late['p50']:.0f} ms, p95 {late['p95']:.0f}, p99 {late['p99']:.0f}, max {late['max']:.0f}; ready "
            f"{row['ready_share']:.0%} of the time; a further session {'refused' if row['refused'] else 'accepted'}"
        )
    for fault in results["faults"]:
        print(f"failed: {fault}")
    write(args.json, "overload", args, results)
    return not results["faults"]


def build_parser() -> argparse.ArgumentParser:
    options = parser("overload", __doc__, least={"quiet": 6.0, "stress": 6.0, "after": 12.0, "clients": 1})
    options.add_argument("--clients", type=positive, default=2, help="at once (default 2)")
    options.add_argument("--busy", type=positive, default=2, help="processes that each take a core (default 2)")
    options.add_argument("--video", choices=("h264", "jpeg"), default="jpeg", help="(default jpeg)")
    options.add_argument("--quiet", type=duration, default=20, help="seconds of the first phase (default 20)")
    options.add_argument("--stress", type=duration, default=40, help="seconds of the second (default 40)")
    options.add_argument("--after", type=duration, default=30, help="seconds of the third (default 30)")
    options.add_argument("--most", type=duration, default=4, help="seconds that sound may be late (default 4)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
