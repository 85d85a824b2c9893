"""`lipstream doctor`."""

from __future__ import annotations

import argparse

from .command import Command, Result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        choices=("gpu", "tensorrt", "torch", "onnxruntime-gpu"),
        help="fail (exit status 1) if this part is missing; may be given more than once",
    )
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="also check whether this bundle runs here")


def _run(args: argparse.Namespace) -> Result:
    from .diagnosis import describe, examine

    found = examine(args.bundle, args.require)
    return Result(found, describe(found), ok=found["ok"])


DOCTOR = Command(
    "doctor",
    "what is installed and what is missing",
    "Report what this machine can run, what is missing, and the command that installs it. Worst first.",
    _add_arguments,
    _run,
)
