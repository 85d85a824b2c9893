"""Prepared references for sessions: the bundled one, the operator's, and uploads, which are kept for a limited time.

An upload is in a temporary file while it is decoded. Only its frames are kept, in an unnamed file that disappears with
the process. Where replicas share a folder, the upload itself is kept there, so that each of them can prepare it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import samples
from ..engine import LipSyncEngine
from ..errors import UnknownReferenceError, UploadTooLargeError
from ..session import PreparedReference

BUNDLED = "bundled"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass
class _Kept:
    prepared: PreparedReference
    used: float = field(default_factory=time.monotonic)


class References:
    """Prepared references by name.

    Args:
        most: uploads that are kept; beyond that the least recently used one is dropped.
        seconds: used of a video. keep: seconds for which an unused upload is kept.
        megabytes: limit of an upload; its frames may take ten times as much on disk.
        folder: where uploads are kept for other replicas; None keeps them in this process alone.
    """

    def __init__(
        self,
        engine: LipSyncEngine,
        *,
        most: int = 8,
        seconds: float = 12.0,
        megabytes: int = 64,
        keep: float = 900.0,
        folder: Path | None = None,
    ) -> None:
        self._engine, self._most, self._seconds = engine, most, seconds
        self._bytes, self._keep, self._folder = megabytes << 20, keep, folder
        self._permanent: dict[str, PreparedReference] = {}
        self._kept: dict[str, _Kept] = {}
        self._one_at_a_time = asyncio.Lock()

    def load_permanent(self, own: Sequence[tuple[str, str]] = ()) -> None:
        """Prepare the shipped face and those of `own`, names and files; takes a second for each.

        Raises:
            What `LipSyncEngine.prepare` raises.
        """
        self._permanent[BUNDLED] = self._engine.prepare(samples.FACE, seconds=self._seconds)
        for name, file in own:
            self._permanent[name] = self._engine.prepare(file, seconds=self._seconds)

    def names(self) -> list[str]:
        """Names that every client may know."""
        return list(self._permanent)

    @property
    def bundled(self) -> PreparedReference:
        """The shipped face."""
        return self._permanent[BUNDLED]

    async def get(self, name: str) -> PreparedReference:
        """A reference by its name; one that another replica received is prepared now.

        Raises:
            UnknownReferenceError; and what `LipSyncEngine.prepare` raises.
        """
        if name in self._permanent:
            return self._permanent[name]
        self._forget()
        if name not in self._kept and self._folder and _NAME.fullmatch(name):
            async with self._one_at_a_time:
                if name not in self._kept and (self._folder / name).is_file():
                    self._kept[name] = _Kept(await self._prepare(self._folder / name))
        if name not in self._kept:
            raise UnknownReferenceError(
                f"no reference {name!r}",
                expected=f"{', '.join(self.names())}, or what POST /v1/references gave",
                fix="upload it again",
            )
        self._kept[name].used = time.monotonic()
        if self._folder:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._folder / name)
        return self._kept[name].prepared

    async def upload(self, body: AsyncIterator[bytes]) -> tuple[str, PreparedReference]:
        """Prepare a video or picture; its random name is known to the uploader alone.

        Raises:
            UploadTooLargeError; and what `LipSyncEngine.prepare` raises: no face, no video, ...
        """
        name = secrets.token_urlsafe(12)
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
                prepared = await self._prepare(Path(file.name))
                if self._folder:
                    partial = self._folder / f".{name}"
                    await asyncio.to_thread(shutil.copyfile, file.name, partial)
                    partial.replace(self._folder / name)
        self._kept[name] = _Kept(prepared)
        self._forget()
        return name, prepared

    async def _prepare(self, file: Path) -> PreparedReference:
        return await asyncio.to_thread(
            self._engine.prepare, str(file), seconds=self._seconds, loop_bytes=10 * self._bytes
        )

    def _forget(self) -> None:
        uploads = sorted((kept.used, name) for name, kept in self._kept.items())
        now = time.monotonic()
        for i, (used, name) in enumerate(uploads):
            if len(uploads) - i > self._most or now - used > self._keep:
                del self._kept[name]
        for file in self._folder.iterdir() if self._folder else ():
            with contextlib.suppress(FileNotFoundError):  # another replica was faster
                if time.time() - file.stat().st_mtime > self._keep:
                    file.unlink()
