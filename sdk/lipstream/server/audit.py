"""The audit log: who opened a session, uploaded a face or was refused, and when; a line of JSON each. No media."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class Who:
    """A client. Attributes: key: name of its API key, "token" for the server's token, "" without. address."""

    key: str = ""
    address: str = ""


class Audit:
    """Appends to a file; without one it does nothing. Thread-safe.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._file: int | None = None
        if not path:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._file = os.open(Path(path), flags, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the audit log {path} cannot be written: {error.strerror}", fix="choose another file"
            ) from error

    def write(self, event: str, who: Who, **more: Any) -> None:
        """Append a line. A full disk loses it, but ends no session."""
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, "key": who.key, "address": who.address, **more}
        with self._lock:
            try:
                os.write(self._file, (json.dumps(line) + "\n").encode())
            except OSError:
                return
