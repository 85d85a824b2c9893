"""API keys: a file of their hashes, scopes and ends, which may be changed while the server runs.

A key is 256 random bits, so its SHA-256 is enough to recognise it and says nothing about it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..atomic import write_file
from ..errors import ConfigError, OutputError

LOG = logging.getLogger("lipstream")
SCOPES = ("session", "upload", "metrics")
"""Live sessions; uploads of faces; metrics, version and openapi.json of a private server."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Key:
    """One key. Attributes: sha256: of the key, hexadecimal. scopes: of SCOPES. expires: ISO 8601 with zone, or ""."""

    name: str
    sha256: str
    scopes: tuple[str, ...] = ("session", "upload")
    expires: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or self.name == "token":
            raise ConfigError(f"a key named {self.name!r}", expected='letters, digits, - and _; not "token"')
        if not isinstance(self.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"the key {self.name} has no SHA-256", fix="make it with lipstream key new")
        if not self.scopes or not {*self.scopes} <= {*SCOPES}:
            raise ConfigError(f"the key {self.name} has the scopes {list(self.scopes)}", expected=", ".join(SCOPES))
        try:
            zone = not self.expires or datetime.fromisoformat(self.expires).tzinfo
        except (TypeError, ValueError):
            zone = None
        if not zone:
            raise ConfigError(
                f"the key {self.name} expires {self.expires!r}", expected="a time such as 2027-01-31T00:00Z"
            )

    def expired(self, now: float) -> bool:
        """Whether it may not be used any more, at `now` in seconds since the epoch."""
        return bool(self.expires) and datetime.fromisoformat(self.expires).timestamp() <= now


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises ConfigError: it cannot be read, or is not one of keys."""
    try:
        found = json.loads(path.read_text())["keys"]
        keys = [Key(**{**entry, "scopes": tuple(entry.get("scopes", Key.scopes))}) for entry in found]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read as a file of keys: {error}",
            expected='{"keys": [{"name", "sha256", "scopes", "expires"}]}',
            fix=f"lipstream key new NAME --file {path}",
        ) from error
    if len({key.name for key in keys}) < len(keys):
        raise ConfigError(f"{path} has two keys of one name", fix="remove one of them")
    return keys


def write_keys(path: Path, keys: list[Key]) -> None:
    """Replace the file, whole or not at all; a new one is its user's alone. Raises OutputError."""
    try:
        write_file(path, json.dumps({"keys": [asdict(key) for key in keys]}, indent=1).encode(), mode=0o600)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", fix="choose another file") from error


def new_key(name: str, scopes: tuple[str, ...], expires: datetime | None) -> tuple[str, Key]:
    """A new key: itself, which is not kept anywhere, and what is kept of it."""
    secret = secrets.token_urlsafe(32)
    ends = expires.astimezone(UTC).isoformat(timespec="seconds") if expires else ""
    return secret, Key(name, hashlib.sha256(secret.encode()).hexdigest(), scopes, ends)


class KeyFile:
    """The keys of a file, read again when it changes. A change that cannot be read leaves the keys as they are.

    Raises:
        ConfigError: it cannot be read at first.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._complaint = ""
        self._keys = self._read(first=True)

    def find(self, secret: str) -> Key | None:
        """The key that is `secret`."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        return next((key for key in self.keys() if key.sha256 == digest), None)

    def named(self, name: str) -> Key | None:
        """The key of that name."""
        return next((key for key in self.keys() if key.name == name), None)

    def keys(self) -> list[Key]:
        """All of them, as the file has them now."""
        with self._lock:
            self._keys = self._read()
            return self._keys

    def _read(self, *, first: bool = False) -> list[Key]:
        try:
            found = self._path.stat()
            stamp = found.st_mtime_ns, found.st_size
            if stamp == self._stamp:
                return self._keys
            keys = read_keys(self._path)
        except (OSError, ConfigError) as error:
            if first:
                return read_keys(self._path)  # raises, with the reason
            if str(error) != self._complaint:
                self._complaint = str(error)
                LOG.error("the keys stay as they were: %s", error)
            return self._keys
        self._stamp = stamp
        return keys
