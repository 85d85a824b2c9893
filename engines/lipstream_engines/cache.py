"""Cache of built plans, keyed by everything that affects them; concurrent equal builds build once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lipstream.atomic import write_file
from lipstream.bundle import sha256
from lipstream.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def default_folder() -> Path:
    """LIPSTREAM_CACHE, or `lipstream` in the user's cache folder."""
    if given := os.environ.get("LIPSTREAM_CACHE"):
        return Path(given) / "engines"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lipstream" / "engines"


def key_of(facts: Mapping[str, Any]) -> str:
    """Hash of everything that affects a plan; equal facts give equal keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class PlanCache:
    """A folder with `<key>.plan` and `<key>.json`: the facts, the plan's SHA-256, and details of the build.

    Everything is written under a hidden name and renamed. The lock of a key is held by the operating system, so it is
    released when its process ends, even if it is killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}", fix="--cache another folder") from error

    def find(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """Return the plan of that key and its details; None if it is missing or damaged."""
        plan, note = self.folder / f"{key}.plan", self.folder / f"{key}.json"
        try:
            known = json.loads(note.read_text())
            if known["sha256"] == sha256(plan):
                return plan, known
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def get(
        self,
        key: str,
        facts: Mapping[str, Any],
        build: Callable[[], tuple[memoryview, dict[str, Any]]],
        waiting: Callable[[], None] = lambda: None,
    ) -> tuple[Path, dict[str, Any], bool]:
        """Return the plan of `key`: (its path, details of its build, whether it was cached).

        Args:
            build: builds the plan. waiting: called once if another process is building it.

        Raises:
            OutputError: the cache cannot be written. And what `build` raises.
        """
        if found := self.find(key):
            return *found, True
        with self._locked(f".{key}.lock", waiting):
            if found := self.find(key):
                return *found, True
            data, details = build()
            known = {**details, "facts": dict(facts), "sha256": hashlib.sha256(data).hexdigest()}
            self._write(f"{key}.plan", data)
            self._write(f"{key}.json", json.dumps(known, indent=1).encode())
            return self.folder / f"{key}.plan", known, False

    def read_timing(self, name: str) -> bytes:
        """Return the timing cache of that name; empty if there is none."""
        with contextlib.suppress(OSError):
            return (self.folder / name).read_bytes()
        return b""

    def write_timing(self, name: str, data: bytes) -> None:
        self._write(name, data)

    def _write(self, name: str, data: bytes | memoryview) -> None:
        try:
            write_file(self.folder / name, data)
        except OSError as error:
            raise OutputError(
                f"{self.folder / name} cannot be written: {error.strerror}", fix="free space, or --cache another folder"
            ) from error

    @contextmanager
    def _locked(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        if fcntl is None or sys.platform == "win32":
            yield
            return
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
