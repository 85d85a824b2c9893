"""`lipstream key`: API keys for `lipstream serve --keys`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..atomic import exclusively
from ..errors import ConfigError, OutputError
from .command import Command, Result, UsageError, needs_extra


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=("new", "list", "remove"), help="make a key, show what is kept, or remove one"
    )
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="of the key: its client or its purpose")
    parser.add_argument("--file", type=Path, required=True, help="file of keys; made if there is none")
    parser.add_argument(
        "--scope",
        action="append",
        default=[],
        dest="scopes",
        choices=("session", "upload", "metrics"),
        help="what it is for (default: session and upload); repeatable",
    )
    parser.add_argument("--days", type=float, help="after which it expires (default: never)")


def _run(args: argparse.Namespace) -> Result:
    try:
        with exclusively(args.file):  # else two commands at once would lose one of their keys
            return _change(args)
    except OSError as error:
        raise OutputError(f"{args.file.parent} cannot be used: {error.strerror}", fix="try again later") from error


def _change(args: argparse.Namespace) -> Result:
    from datetime import UTC, datetime, timedelta

    with needs_extra("lipstream key", "server"):
        from ..server.keys import new_key, read_keys, write_keys

    keys = read_keys(args.file) if args.file.exists() or args.action != "new" else []
    if args.action == "list":
        lines = [f"{key.name}: {', '.join(key.scopes)}, {key.expires or 'without end'}" for key in keys]
        shown = [{"name": key.name, "scopes": key.scopes, "expires": key.expires} for key in keys]
        return Result({"keys": shown}, "\n".join(lines) or "no keys")
    if not args.name:
        raise UsageError(
            f"lipstream key {args.action} without a name", fix=f"lipstream key {args.action} NAME --file FILE"
        )
    others = [key for key in keys if key.name != args.name]
    if args.action == "remove":
        if len(others) == len(keys):
            raise ConfigError(f"{args.file} has no key {args.name}", fix=f"lipstream key list --file {args.file}")
        write_keys(args.file, others)
        return Result({"removed": args.name}, f"{args.name} is removed; a running server refuses it from now on")
    if len(others) < len(keys):
        raise ConfigError(f"{args.file} has a key {args.name} already", fix=f"lipstream key remove {args.name} ...")
    if args.days is not None and not 0 < args.days <= 36500:
        raise ConfigError(f"{args.days} days", expected="more than 0")
    ends = datetime.now(UTC) + timedelta(days=args.days) if args.days is not None else None
    secret, key = new_key(args.name, tuple(args.scopes) or ("session", "upload"), ends)
    write_keys(args.file, [*keys, key])
    text = f"{secret}\nThis is shown once; the file has its hash. Clients send it as Authorization: Bearer KEY."
    return Result({"name": key.name, "key": secret, "scopes": key.scopes, "expires": key.expires}, text)


KEY = Command(
    "key",
    "API keys of a server",
    "Make, list or remove API keys for lipstream serve --keys FILE, which reads the file again when it changes.",
    _add_arguments,
    _run,
)
