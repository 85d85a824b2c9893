"""`lipstream serve`."""

from __future__ import annotations

import argparse
import os

from ..server.settings import Settings
from .command import Command, needs_extra


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default=Settings.host, help="address to listen at (default %(default)s: this machine alone)")
    add("--port", type=int, default=Settings.port, help="default %(default)s")
    add("--token", default=os.environ.get("LIPSTREAM_TOKEN", ""), help="that clients must give")
    add("--origin", action="append", default=[], help="of another site's pages that may connect; repeatable")
    add("--max-sessions", type=int, default=Settings.max_sessions, help="at once (default: measured at the start)")
    add("--idle-limit", type=float, default=Settings.idle_limit, help="seconds without sound that end a session")
    add("--total-limit", type=float, default=Settings.total_limit, help="seconds that end any session")
    add("--drain", type=float, default=Settings.drain, help="seconds that sessions may go on after SIGTERM")
    add("--upload-mb", type=int, default=Settings.upload_mb, help="largest video that a client may upload")
    add("--bitrate", type=int, default=Settings.bitrate, help="kbit/s of WebRTC video (default %(default)s)")
    add("--ice-server", action="append", default=[], metavar="URL", help="STUN or TURN server for WebRTC; repeatable")
    add("--bundle", default=Settings.bundle, help="folder or shipped name (default %(default)s)")
    add("--backend", help="default: the one that the bundle is for")
    add("--threads", type=int, default=Settings.threads, help="CPU threads (default: chosen for this CPU)")


def _run(args: argparse.Namespace) -> None:
    with needs_extra("lipstream serve", "server"):
        from ..server.command import serve

    serve(
        Settings(
            host=args.host,
            port=args.port,
            token=args.token,
            origins=tuple(args.origin),
            max_sessions=args.max_sessions,
            idle_limit=args.idle_limit,
            total_limit=args.total_limit,
            drain=args.drain,
            upload_mb=args.upload_mb,
            bitrate=args.bitrate,
            ice_servers=tuple(args.ice_server),
            bundle=args.bundle,
            backend=args.backend,
            threads=args.threads,
        )
    )


SERVE = Command(
    "serve",
    "live sessions over WebSocket and WebRTC, with a page to try them",
    "Serve live sessions: sound comes in, pictures and sound go out (docs/protocol.md). Prints the address of a page "
    "to try it with. Needs lipstream[server].",
    _add_arguments,
    _run,
)
