"""`lipstream serve`."""

from __future__ import annotations

import argparse
import os

from ..server.settings import Settings
from .command import Command, add_trust, needs_extra


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    s = Settings
    add("--host", default=s.host, help="address to listen on (default %(default)s: this machine only)")
    add("--port", type=int, default=s.port, help="port to listen on (default %(default)s)")
    add(
        "--token",
        default=os.environ.get("LIPSTREAM_TOKEN", s.token),
        help="token that clients must send; better in the environment variable LIPSTREAM_TOKEN, which other users of "
        "this machine cannot see",
    )
    add("--keys", default=s.keys, metavar="FILE", help="API keys of single clients, made with lipstream key")
    add(
        "--audit",
        default=s.audit,
        metavar="FILE",
        help="append who opened, uploaded, was refused: JSON lines, no media",
    )
    add("--root-path", default=s.root_path, help="path under which a proxy publishes the server, such as /lips")
    add(
        "--forwarded-allow-ips",
        default=s.forwarded_allow_ips,
        metavar="IPS",
        help="proxies whose X-Forwarded-* headers are believed, separated by commas (default %(default)s)",
    )
    add(
        "--origin",
        action="append",
        default=[],
        dest="origins",
        help="origin of another site whose pages may connect; repeatable",
    )
    add(
        "--allowed-host",
        action="append",
        default=[],
        dest="hosts",
        metavar="NAME",
        help="name by which clients may address the server (default: any, with a token); repeatable",
    )
    add("--private", action="store_true", help="metrics, version and openapi.json need the token, too")
    add("--tls-cert", default=s.tls_cert, metavar="FILE", help="certificate for HTTPS, PEM")
    add("--tls-key", default=s.tls_key, metavar="FILE", help="its key, PEM")
    add(
        "--behind-proxy",
        action="store_true",
        help="a proxy in front of the server has TLS, and limits connections by address",
    )
    add("--most-connections", type=int, default=s.most_connections, help="open at once (default %(default)s)")
    add(
        "--connections-per-address",
        type=int,
        default=s.connections_per_address,
        help="open at once from one address, except with --behind-proxy (default %(default)s)",
    )
    add(
        "--requests-per-second",
        type=float,
        default=s.requests_per_second,
        help="of one address; four times as many in a burst (default %(default)g)",
    )
    add("--max-sessions", type=int, default=s.max_sessions, help="concurrent sessions (default: measured at the start)")
    add("--idle-limit", type=float, default=s.idle_limit, help="seconds without sound after which a session ends")
    add("--total-limit", type=float, default=s.total_limit, help="maximum seconds of a session")
    add(
        "--max-late",
        type=float,
        default=s.max_late,
        help="seconds that sound waits for late pictures on an overloaded machine; then it is sent without them "
        "(default %(default)g)",
    )
    add("--drain", type=float, default=s.drain, help="seconds that sessions may continue after SIGTERM")
    add("--upload-mb", type=int, default=s.upload_mb, help="size limit of an uploaded video, MB")
    add(
        "--no-sandbox",
        action="store_false",
        dest="sandbox",
        help="decode uploads in the server's own process (default: in one with limits, and without network)",
    )
    add(
        "--reference",
        action="append",
        default=[],
        dest="references",
        metavar="NAME=FILE",
        type=_name_and_file,
        help="a face that clients can choose by its name: a video or picture; repeatable",
    )
    add("--reference-dir", default=s.reference_dir, metavar="DIR", help="folder of uploads that replicas share")
    add("--bitrate", type=int, default=s.bitrate, help="kbit/s of WebRTC video (default %(default)s)")
    add(
        "--ice-server",
        action="append",
        default=[],
        dest="ice_servers",
        metavar="URL",
        help="STUN or TURN server for WebRTC; repeatable",
    )
    add(
        "--ice-network",
        action="append",
        default=[],
        dest="ice_networks",
        metavar="NETWORK",
        help="network, such as 10.0.0.0/8, to whose addresses any client may direct WebRTC packets (default: its "
        "own, public ones, and private ones for a client on a private network); repeatable",
    )
    add(
        "--turn-secret",
        default=os.environ.get("LIPSTREAM_TURN_SECRET", s.turn_secret),
        metavar="SECRET",
        help="shared with the TURN servers (coturn: static-auth-secret); better in the environment variable "
        "LIPSTREAM_TURN_SECRET",
    )
    add("--bundle", default=s.bundle, help="folder or shipped name (default %(default)s)")
    add_trust(parser)
    add("--backend", help="default: tensorrt for engines, else onnxruntime")
    add("--threads", type=int, default=s.threads, help="CPU threads (default: chosen for this CPU)")


def _run(args: argparse.Namespace) -> None:
    with needs_extra("lipstream serve", "server"):
        from ..server.command import serve

    given = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    names = ("origins", "hosts", "ice_servers", "ice_networks", "references", "trust")
    lists = {name: tuple(given[name]) for name in names}
    serve(Settings(**given | lists))


def _name_and_file(text: str) -> tuple[str, str]:
    name, separator, file = text.partition("=")
    if not separator or not file:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, file


SERVE = Command(
    "serve",
    "live sessions over WebSocket and WebRTC, with a page to try them",
    "Serve live sessions: receives sound, sends pictures and sound (docs/protocol.md). Prints the address of a page "
    "to try it with. Needs lipstream[server].",
    _add_arguments,
    _run,
)
