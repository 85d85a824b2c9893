"""What `make docs` adds to the pages: the reference of the commands, from their parsers.

And what it takes away: links to files that are in the repository, but not on the site.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from lipstream.cli import build_parser
from lipstream.cli.main import LIPSTREAM
from lipstream_training.cli import LIPSTREAM_TRAIN
from mkdocs.structure.files import File, Files

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(r"\1", markdown) if ".." in markdown else markdown


def commands() -> str:
    """Every command of both programs as its ``--help`` shows it."""
    pages = ["# Commands\n\nAs `--help` shows them.\n"]
    for program in (LIPSTREAM, LIPSTREAM_TRAIN):
        parser = build_parser(program)
        (choices,) = (x.choices for x in parser._actions if isinstance(x, argparse._SubParsersAction))
        for name, command in choices.items():
            command.formatter_class = _Wide
            pages.append(f"## {program.name} {name}\n\n```text\n{command.format_help().rstrip()}\n```\n")
    return "\n".join(pages)


class _Wide(argparse.RawDescriptionHelpFormatter):
    """The same on every terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100)
