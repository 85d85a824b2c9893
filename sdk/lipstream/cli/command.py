"""What a package defines to add a command: its arguments and the function behind it.

A module that defines commands is imported whenever a command line is parsed, so it imports nothing heavy (torch, onnx,
numpy, OpenCV, PyAV) at module level; `run` imports what it needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, MissingExtraError


@dataclass(frozen=True)
class Result:
    """What a command returns; `main` prints it.

    Attributes:
        data: printed as JSON with --json.
        text: printed without --json.
        warnings: printed to standard error, with or without --json.
        ok: False for exit status 1.
    """

    data: dict[str, Any]
    text: str
    warnings: Sequence[str] = ()
    ok: bool = True


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        name: as typed.
        help: one line for the list of commands. description: for the command's own --help.
        add_arguments: adds the arguments to a parser; every command gets --json from `main`.
        run: takes the parsed arguments. Appends each finished file to `args.written` (a list of Path), so that the
            message after an interruption can name it. Returns None where there is nothing to print.
    """

    name: str
    help: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result | None]


@dataclass(frozen=True)
class Program:
    """A command line of several commands.

    Attributes:
        commands: called once per run.
        announces: of an error's code and message, whether this process prints it. For several processes with one
            terminal.
    """

    name: str
    description: str
    commands: Callable[[], Sequence[Command]]
    announces: Callable[[str, str], bool] = lambda code, message: True


class UsageError(Exception):
    """The command line is incomplete or contradictory: exit status 2."""

    def __init__(self, found: str, *, fix: str) -> None:
        super().__init__(f"{found}\n  fix: {fix}")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust; without it `args.trust` is empty."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="KEY",
        help="refuse a bundle that is not signed by this public key: a file (lipstream sign --new-key), or its text; "
        "repeatable. Needs lipstream[sign]",
    )


def face_at(text: str | None) -> tuple[float, float] | None:
    """The pixel that --face-at names; None without it. Raises ConfigError: it is not two numbers."""
    if text is None:
        return None
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--face-at {text!r}", expected="two numbers in pixels, e.g. --face-at 640,200") from error
    return x, y


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Turn a missing dependency into a MissingExtraError: "`what` needs the module ...", fix: install `extra`.

    Works as a context manager and as a decorator. A failing import of LipStream's own modules is a bug and passes.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("lipstream"):
            raise
        missing = (
            f"the module {error.name!r}, which is not installed" if error.name else f"an import that fails: {error}"
        )
        raise MissingExtraError(f"{what} needs {missing}", fix=f"pip install 'lipstream[{extra}]'") from error
