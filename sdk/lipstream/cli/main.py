"""Parses a command line, runs one command, prints its result or its error, and returns the exit status."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ..errors import LipStreamError, OutputError
from .command import Command, Program, Result, UsageError

USAGE, BUG, SIGNALLED = 2, 70, 128
_SIGPIPE = 13


def installed_commands() -> list[Command]:
    """The commands of all packages, in the order of the entry points `lipstream.commands`."""
    return [entry.load() for entry in entry_points(group="lipstream.commands")]


LIPSTREAM = Program("lipstream", "Put new speech on a person's lips in a video.", installed_commands)


def main(argv: Sequence[str] | None = None, program: Program = LIPSTREAM) -> int:
    """Run one command of `program`.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        The exit status: 0; 1 where `doctor` finds something broken; the error's own (see `lipstream.errors`); 2 for
        wrong usage; 70 for a bug; 128 + n after signal n (Ctrl-C: 130). With --json, each of these prints JSON.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal lacks is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    failure = _Failure(program, "--json" in arguments)
    try:
        with _signals_raise():
            args = build_parser(program).parse_args(arguments, argparse.Namespace(written=failure.written))
            command: Command = args.command
            result = command.run(args)
    except LipStreamError as error:
        return failure.report(error.code, str(error), error.exit_code)
    except UsageError as error:
        return failure.report("usage", str(error), USAGE)
    except _Signalled as signalled:
        name = "interrupted" if signalled.number == signal.SIGINT else "terminated"
        return failure.report(name, f"{name}: {failure.state()}", SIGNALLED + signalled.number)
    except MemoryError:
        return failure.report("memory", f"out of memory; {failure.state()}", BUG)
    except Exception as error:
        traceback.print_exc()
        return failure.report("internal", f"a bug in LipStream, please report it: {type(error).__name__}: {error}", BUG)
    if result is None:
        return 0
    try:
        _print(result, program.name, as_json=args.json)
    except BrokenPipeError:  # the reader of standard output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit raises again
        return SIGNALLED + _SIGPIPE
    except OSError as error:  # such as a full disk
        print(f"{program.name}: standard output cannot be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OutputError.exit_code
    return 0 if result.ok else 1


def build_parser(program: Program = LIPSTREAM) -> argparse.ArgumentParser:
    """The parser of `program`; parsed arguments have the chosen `Command` as `command`."""
    from .. import __version__

    parser = _Parser(prog=program.name, description=program.description)
    parser.add_argument("--version", action="version", version=f"{program.name} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in program.commands():
        options = commands.add_parser(command.name, help=command.help, description=command.description)
        options.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        options.add_argument("--quiet", action="store_true", help="no progress bars, only warnings and errors")
        options.set_defaults(command=command)
        command.add_arguments(options)
    return parser


def _print(result: Result, program: str, *, as_json: bool) -> None:
    for warning in result.warnings:
        print(f"{program}: warning: {_shown(warning)}", file=sys.stderr)
    print(json.dumps(result.data, indent=2) if as_json else _shown(result.text), flush=True)


def _shown(text: str) -> str:
    """`text` for a terminal: names and metadata of files may have control characters, or none of its encoding."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Failure:
    """Reports a failed command. Attributes: written: files that it finished before."""

    def __init__(self, program: Program, as_json: bool) -> None:
        self._program, self._json = program, as_json
        self.written: list[Path] = []

    def state(self) -> str:
        return f"{', '.join(map(str, self.written))} is complete" if self.written else "nothing was written"

    def report(self, code: str, message: str, status: int) -> int:
        if not self._program.announces(code, message):
            return status
        print(f"{self._program.name}: {_shown(message)}", file=sys.stderr)
        if self._json:
            with suppress(OSError):
                error = {"code": code, "message": message, "exit_status": status}
                print(json.dumps({"error": error}), flush=True)
        return status


class _Signalled(BaseException):
    """A signal asks the process to end. Not an Exception: only clean-up code sees it."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `_Signalled` in the main thread."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise _Signalled(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        before = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # handlers can only be set in the main thread
        before = {}
    try:
        yield
    except Exception as error:
        if received:  # native code that it interrupts, such as an import, raises an error of its own
            raise _Signalled(received[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, fix=f"{self.prog} --help")
