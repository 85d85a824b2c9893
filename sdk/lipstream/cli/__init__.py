"""The command `lipstream`."""

from .main import build_parser, main

__all__ = ["build_parser", "main"]
