"""`lipstream serve`."""

from __future__ import annotations

import argparse
import os

from .command import Command, needs_extra


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=int, default=8000, help="port to listen on (default 8000)")
    add("--token", default=os.environ.get("LIPSTREAM_TOKEN", ""), help="token that clients must send")
    add("--origin", action="append", default=[], help="origin of another site whose pages may connect; repeatable")
    add("--max-sessions", type=int, default=0, help="concurrent sessions (default: measured at the start)")
    add("--idle-limit", type=float, default=120, help="seconds without sound after which a session ends")
    add("--total-limit", type=float, default=3600, help="maximum seconds of a session")
    add("--drain", type=float, default=30, help="seconds that sessions may continue after SIGTERM")
    add("--upload-mb", type=int, default=64, help="size limit of an uploaded video, MB")
    add("--bitrate", type=int, default=1500, help="kbit/s of WebRTC video (default 1500)")
    add("--ice-server", action="append", default=[], metavar="URL", help="STUN or TURN server for WebRTC; repeatable")
    add("--bundle", default="tiny", help="folder or shipped name (default tiny)")
    add("--backend", help="default: tensorrt for engines, else onnxruntime")
    add("--threads", type=int, default=0, help="CPU threads (default: chosen for this CPU)")


def _run(args: argparse.Namespace) -> None:
    with needs_extra("lipstream serve", "server"):
        from ..server.command import serve
        from ..server.state import Settings

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
    "Serve live sessions: receives sound, sends pictures and sound (docs/protocol.md). Prints the address of a page "
    "to try it with. Needs lipstream[server].",
    _add_arguments,
    _run,
)
