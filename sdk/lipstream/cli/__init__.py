"""The command line: `main`, and the commands of the SDK itself. Other packages add theirs by entry points."""

from .command import Command, Program, Result, UsageError, face_at, needs_extra
from .main import LIPSTREAM, build_parser, main

__all__ = ["LIPSTREAM", "Command", "Program", "Result", "UsageError", "build_parser", "face_at", "main", "needs_extra"]
