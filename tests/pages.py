"""The commands that stand in a page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

_PROGRAMS = "lipstream|lipstream-train|python3?|torchrun|tensorboard|pytest|pip|apt-get|make|bash|rsync|nvidia-smi|nvcc"
_COMMAND = re.compile(rf"([A-Z]+=\S+ )*({_PROGRAMS})( |$)")
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_STEP = re.compile(r"^ *- (?:run: )?(?!run|uses)", re.MULTILINE)


def commands(page: str) -> dict[str, list[str]]:
    """Every command of a page, by the heading above it, in the page's order.

    Those are all lines of its `sh` blocks, the lines of its `yaml` blocks that start with a program, and inline code
    that does. Lines that are continued are joined; comments are left out.
    """
    found: dict[str, list[str]] = {}
    for part in re.split(r"^#+ (?=\S)", _without_comments((ROOT / page).read_text()), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        under: list[str] = []
        at = 0
        for block in [*_FENCED.finditer(text), None]:
            inline = text[at : block.start() if block else None]
            under += [one for code in re.findall(r"`([^`]+)`", inline) if _COMMAND.match(one := " ".join(code.split()))]
            if block:
                under += _lines(*block.groups())
                at = block.end()
        if under:
            found[heading] = [*dict.fromkeys(under)]
    return found


def _lines(language: str, block: str) -> list[str]:
    lines = [" ".join(line.split()) for line in block.replace("\\\n", " ").splitlines()]
    if language == "sh":
        return [line for line in lines if line]
    if language == "yaml":
        return [line for text in lines if _COMMAND.match(line := _STEP.sub("", text))]
    return []


def _without_comments(page: str) -> str:
    """The page without the comments in its `sh` blocks, which would be taken for headings."""

    def blank(block: re.Match[str]) -> str:
        if block[1] != "sh":
            return block[0]
        return re.sub(r"(^| +)#.*$", "", block[0], flags=re.MULTILINE)

    return _FENCED.sub(blank, page)


def inline_code(page: str) -> list[str]:
    """All inline code of a page, its line breaks as spaces."""
    text = _FENCED.sub("", (ROOT / page).read_text())
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
