"""The documentation site: it builds without a warning, and nothing public is missing in it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import lipstream
import pytest
import yaml
from lipstream.cli import build_parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


def text(page: Path) -> str:
    return unescape(re.sub(r"<[^>]*>", "", page.read_text()))


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert listed == pages | {"reference/commands.md"}


def test_the_reference_of_python(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    for name, member in public():
        assert f'id="lipstream.{name}"' in page, name
        assert inspect.getdoc(member), name


def public() -> Iterator[tuple[str, Any]]:
    """The public names, and the public methods of classes that these define themselves."""
    for name in lipstream.__all__:
        given = getattr(lipstream, name)
        yield name, given
        for method, member in vars(given).items():
            if not method.startswith("_") and inspect.isfunction(member):
                yield f"{name}.{method}", member


def test_the_reference_of_commands(site: Path) -> None:
    page = text(site / "reference" / "commands.html")
    (choices,) = (x.choices for x in build_parser()._actions if x.choices)
    for name, command in dict(choices).items():  # type: ignore[call-overload]
        assert f"usage: lipstream {name}" in page
        for option in (option for action in command._actions for option in action.option_strings):
            assert option in page, (name, option)


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), (page.name, tag)


def test_every_environment_variable_is_on_its_page() -> None:
    page = (DOCS / "environment.md").read_text()
    read = re.compile(r"environ(?:\.get\(|\.setdefault\(|\[)\"(\w+)\"")
    sources = [path for folder in ("sdk", "engines", "export", "training") for path in (ROOT / folder).rglob("*.py")]
    for path in sources:
        for name in read.findall(path.read_text()):
            assert f"`{name}`" in page, (path, name)


def test_a_broken_link_fails(tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text().replace("hooks: [docs/site_hooks.py]\n", ""))
    settings |= {"nav": None, "plugins": ["search"], "docs_dir": "pages"}
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text("[nowhere](missing.md)")
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode != 0
    assert "missing.md" in found.stderr
