"""Does the server work behind a proxy, on a network that loses packets, for a long time?

`lipstream serve --root-path /avatar` runs behind nginx, with TLS and examples/nginx.conf. Clients
reach it through a link that delays each packet by --delay +- --jitter and loses --loss of them, in each direction
(lossy_network.py). One session follows the other, over a WebSocket and over WebRTC in turn, whose sound and pictures do
not go through nginx; one in three is interrupted while it speaks. Clients use a token, a ticket, an origin and an
uploaded face, as a page does; they run on the server's machine, and so take a part of its time.

It fails if a session fails: sound over a WebSocket comes back sample by sample, on a clock without gaps, with pictures
that can be decoded; of sound over WebRTC all but a tenth is found again. It fails if the server holds more at the end
than after --warm-up minutes: 40 MiB, two threads, two files, or any session. Needs root, nginx, openssl, iproute2.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.errors import ConfigError
from lipstream.samples import FACE

from .common import ROOT, main, parser, positive, write
from .lossy_network import FAR, LossyNetwork, lossy_network
from .server_client import Server, held, running
from .spoken_session import Session, over_webrtc, over_websocket

PATH, PORT = "/avatar", 8443
SHARES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
KINDS = ((over_websocket, "h264"), (over_webrtc, "vp8"), (over_websocket, "jpeg"), (over_webrtc, "h264"))
MOST_MIB, MOST_THREADS, MOST_FILES = 40, 2, 2
LEAST_RECOGNISED = 0.9
NGINX = """
daemon off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/nginx-errors.log;
worker_processes 1;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/lipstream.conf;
}}
"""


@dataclass
class Proxied:
    """A server behind nginx. Attributes: server: as clients see it. process: the server's. log: its log."""

    server: Server
    process: subprocess.Popen[bytes]
    log: Path


def shipped_configuration(folder: Path) -> str:
    """examples/nginx.conf with the port, and files in `folder`."""
    text = (ROOT / "examples/nginx.conf").read_text()
    for shipped, here in (
        ("listen 443 ssl;", f"listen {PORT} ssl;"),
        ("/etc/ssl/lipstream/", f"{folder}/"),
        ("/var/log/nginx/lipstream.log", f"{folder}/access.log"),
    ):
        assert shipped in text, f"examples/nginx.conf has no {shipped}"
        text = text.replace(shipped, here)
    return text


@contextmanager
def proxied(network: LossyNetwork, folder: Path, *options: str) -> Iterator[Proxied]:
    """A server and nginx at the far end of `network`, ready for sessions; their files are in `folder`."""
    for program in ("nginx", "openssl"):
        if not shutil.which(program):
            raise ConfigError(f"{program} is not installed", fix=f"apt-get install {program}")
    names = ["-nodes", "-days", "2", "-subj", "/CN=lipstream", "-addext", f"subjectAltName=IP:{FAR}"]
    files = ["-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *names, *files],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder))
    (folder / "lipstream.conf").write_text(shipped_configuration(folder))
    token = secrets.token_hex()
    serve = ["env", f"LIPSTREAM_TOKEN={token}", sys.executable, "-m", "lipstream", "serve", "--root-path", PATH]
    serve.append("--behind-proxy")
    nginx = ["nginx", "-c", str(configuration), "-e", str(folder / "nginx-errors.log")]
    log = folder / "server.log"
    with (
        running([*network.far, *serve, *options], log) as process,
        running([*network.far, *nginx], folder / "nginx.log", signal.SIGTERM),
    ):
        tls = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
        server = Server(f"https://{FAR}:{PORT}{PATH}", token, tls)
        server.wait_until_ready(process, log)
        yield Proxied(server, process, log)


async def sessions(server: Server, reference: str, seconds: float, clients: int) -> list[Session]:
    """Sessions of every kind, begun within `seconds`; `clients` at once, with the bundled face and with `reference`."""
    end = time.monotonic() + seconds

    async def one_after_the_other(first: int) -> list[Session]:
        done: list[Session] = []
        while time.monotonic() < end or len(done) < len(KINDS):
            number = first + len(done)
            speak, codec = KINDS[number % len(KINDS)]
            interrupted, face = number % 3 == 2, ("bundled", reference)[number // len(KINDS) % 2]
            try:
                session = await speak(server, codec, interrupted, face)
            except Exception as error:
                session = Session(f"{speak.__name__}, {codec}", interrupted, [f"{type(error).__name__}: {error}"])
            if session.recognised < LEAST_RECOGNISED:
                session.faults.append(f"only {session.recognised:.0%} of the sound is found")
            for fault in session.faults:
                print(f"{session.kind}{', interrupted' * interrupted}: {fault}", flush=True)
            done.append(session)
        return done

    all_done = await asyncio.gather(*(one_after_the_other(first) for first in range(clients)))
    return [session for done in all_done for session in done]


def summary(done: list[Session]) -> dict[str, Any]:
    """By kind of session: counts, pictures of all frames, milliseconds that sound was later than at best."""
    rows = {}
    for kind in sorted({session.kind for session in done}):
        these = [session for session in done if session.kind == kind]
        good = [session for session in these if session.late]
        late = np.concatenate([session.late for session in good]) if good else np.zeros(1)
        frames = sum(session.frames for session in these)
        rows[kind] = {
            "sessions": len(these),
            "interrupted": sum(session.interrupted for session in these),
            "failed": sum(bool(session.faults) for session in these),
            "frames": frames,
            "pictures_share": sum(session.pictures for session in these) / max(frames, 1),
            "gaps": sum(session.gaps for session in these),
            "sound_lost_share": float(np.mean([session.sound_lost for session in these])),
            "recognised_least": min(session.recognised for session in these),
            "without_closed": sum(not session.closed for session in these),
            "degraded": sum(session.degraded for session in these),
            "late_ms": {name: 1000 * float(np.percentile(late, share)) for name, share in SHARES.items()},
            "first_ms": 1000 * float(np.median([session.first for session in good])) if good else None,
        }
    return rows


def lateness(text: str, since: str) -> dict[str, float]:
    """Seconds that 50, 95 and 99 % of the server's frames were late at most, from two answers of its metrics."""

    def buckets(metrics: str) -> Counter[float]:
        found = re.findall(r'^lipstream_lateness_seconds_bucket{le="(\S+)"} (\S+)$', metrics, re.M)
        return Counter({float(edge): float(count) for edge, count in found})

    counts = {edge: count - buckets(since)[edge] for edge, count in sorted(buckets(text).items())}
    most = max(counts.values(), default=0)
    return {
        f"p{share}": next((edge for edge, count in counts.items() if count >= share / 100 * most), 0.0)
        for share in (50, 95, 99)
    }


def counters(text: str) -> dict[str, float]:
    names = ("sessions_opened", "sessions_closed", "interrupts", "pictures_dropped", "pictures_skipped", "frames")
    found = dict(re.findall(r"^lipstream_(\w+)_total (\S+)$", text, re.M))
    return {name: float(found.get(name, 0)) for name in names}


def run(args: argparse.Namespace) -> bool:
    # Killed politely, it still removes its namespaces.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with lossy_network(args.delay / 1000, args.jitter / 1000, args.loss / 100) as network:
            options = (
                "--max-sessions",
                str(args.clients + 1),
                "--drain",
                "1",
                "--threads",
                str(args.threads),
                "--bundle",
                args.bundle,
            )
            with proxied(network, folder, *options) as here:
                results = measure(here, args)
            log = here.log.read_text()
        results["packets"] = network.packets
        if "Traceback" in log:
            results["faults"].append("the server's log has a traceback")
            print(log)
    for fault in results["faults"]:
        print(f"failed: {fault}")
    write(args.json, "proxied", args, results)
    return not results["faults"]


def measure(here: Proxied, args: argparse.Namespace) -> dict[str, Any]:
    server = here.server
    faults = []
    if f'<base href="{PATH}/">' not in server.get("/"):
        faults.append("the page has another path")
    face = str(server.post("/v1/references", FACE.read_bytes())["reference"])
    faults += [
        x for session in asyncio.run(sessions(server, face, 60 * args.warm_up, args.clients)) for x in session.faults
    ]
    server.wait_for("lipstream_sessions_active", 0)
    before, metrics_before = held(here.process.pid), server.get("/v1/metrics")
    print(f"warm: {before[0]:.0f} MiB, {before[1]} threads, {before[2]} files", flush=True)
    done = asyncio.run(sessions(server, face, 60 * args.minutes, args.clients))
    faults += [x for session in done for x in session.faults]
    server.wait_for("lipstream_sessions_active", 0)
    time.sleep(1)
    after, metrics_after = held(here.process.pid), server.get("/v1/metrics")
    print(f"at the end: {after[0]:.0f} MiB, {after[1]} threads, {after[2]} files", flush=True)
    for name, now, then, most in zip(
        ("MiB", "threads", "files"), after, before, (MOST_MIB, MOST_THREADS, MOST_FILES), strict=True
    ):
        if now - then > most:
            faults.append(f"{now:.0f} {name}, {then:.0f} after the warm-up")
    counts, counts_before = counters(metrics_after), counters(metrics_before)
    rows = summary(done)
    for kind, row in rows.items():
        late = {name: f"{milliseconds:.0f}" for name, milliseconds in row["late_ms"].items()}
        print(
            f"{kind:16} {row['sessions']} sessions, {row['interrupted']} interrupted, {row['failed']} failed; pictures "
            f"{row['pictures_share']:.1%}; sound late by {late['p50']} ms, p95 {late['p95']}, p99 {late['p99']}"
            f"; first after {row['first_ms'] or 0:.0f} ms"
        )
    results = {
        "sessions": rows,
        "server": {name: counts[name] - counts_before[name] for name in counts},
        "server_late_seconds_at_most": lateness(metrics_after, metrics_before),
        "held": {
            name: {"after_warm_up": before[i], "at_end": after[i]} for i, name in enumerate(("mib", "threads", "files"))
        },
        "faults": faults,
    }
    print(f"server: {results['server']}, frames late by {results['server_late_seconds_at_most']} s at most")
    return results


def build_parser() -> argparse.ArgumentParser:
    options = parser("proxied", __doc__, least={"minutes": 0.1, "warm_up": 0.0})
    options.add_argument("--minutes", type=float, default=10, help="(default 10)")
    options.add_argument("--warm-up", type=float, default=2, help="minutes before them (default 2)")
    options.add_argument("--clients", type=positive, default=1, help="at once (default 1)")
    options.add_argument("--delay", type=float, default=40, help="ms, one way (default 40)")
    options.add_argument("--jitter", type=float, default=10, help="ms (default 10)")
    options.add_argument("--loss", type=float, default=1.5, help="%% of packets (default 1.5)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
