"""Prepared references for sessions: the bundled one, and uploads of clients, which are kept for a limited time.

An upload is in a temporary file while it is decoded. Only its frames are kept, in an unnamed file that disappears with
the process.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from .. import samples
from ..engine import LipSyncEngine
from ..errors import UnknownReferenceError, UploadTooLargeError
from ..session import PreparedReference

BUNDLED = "bundled"


@dataclass
class _Kept:
    prepared: PreparedReference
    used: float = field(default_factory=time.monotonic)


class References:
    """Prepared references by name.

    Args:
        most: uploads that are kept; beyond that the least recently used one is dropped.
        seconds: used of an upload. keep: seconds for which an unused one is kept.
        megabytes: limit of an upload; its frames may take ten times as much on disk.
    """

    def __init__(
        self, engine: LipSyncEngine, *, most: int = 8, seconds: float = 12.0, megabytes: int = 64, keep: float = 900.0
    ) -> None:
        self._engine, self._most, self._seconds = engine, most, seconds
        self._bytes, self._keep = megabytes << 20, keep
        self._kept: dict[str, _Kept] = {}
        self._one_at_a_time = asyncio.Lock()

    def load_bundled(self) -> None:
        """Prepare the shipped face; takes a second."""
        self._kept[BUNDLED] = _Kept(self._engine.prepare(samples.FACE, seconds=self._seconds))

    def names(self) -> list[str]:
        """Names that every client may know."""
        return [BUNDLED] if BUNDLED in self._kept else []

    def get(self, name: str) -> PreparedReference:
        """Raises UnknownReferenceError."""
        self._forget()
        if name not in self._kept:
            raise UnknownReferenceError(
                f"no reference {name!r}", expected="'bundled', or what POST /v1/references gave", fix="upload it again"
            )
        self._kept[name].used = time.monotonic()
        return self._kept[name].prepared

    async def upload(self, body: AsyncIterator[bytes]) -> tuple[str, PreparedReference]:
        """Prepare a video or picture; its random name is known to the uploader alone.

        Raises:
            UploadTooLargeError; and what `LipSyncEngine.prepare` raises: no face, no video, ...
        """
        async with self._one_at_a_time:
            with tempfile.NamedTemporaryFile(prefix="lipstream-", suffix=".video") as file:
                size = 0
                async for piece in body:
                    size += len(piece)
                    if size > self._bytes:
                        raise UploadTooLargeError(
                            f"more than {self._bytes >> 20} MB", expected="a few seconds of video", fix="cut it"
                        )
                    file.write(piece)
                file.flush()
                prepared = await asyncio.to_thread(
                    self._engine.prepare, file.name, seconds=self._seconds, loop_bytes=10 * self._bytes
                )
        name = secrets.token_urlsafe(12)
        self._kept[name] = _Kept(prepared)
        self._forget()
        return name, prepared

    def _forget(self) -> None:
        uploads = sorted((kept.used, name) for name, kept in self._kept.items() if name != BUNDLED)
        now = time.monotonic()
        for i, (used, name) in enumerate(uploads):
            if len(uploads) - i > self._most or now - used > self._keep:
                del self._kept[name]
