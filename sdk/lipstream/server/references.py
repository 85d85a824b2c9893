"""Prepared references for sessions: the bundled one, the operator's, and uploads, which are kept for a limited time.

An upload is in an unnamed temporary file while it is decoded, by a process of its own (`lipstream.media.sandbox`). Only
its frames are kept, in another unnamed file: neither outlives the server. Where replicas share a folder, the upload
itself is kept there, so that each of them can prepare it.
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
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .. import samples
from ..engine import LipSyncEngine
from ..errors import UnavailableError, UnknownReferenceError, UploadTooLargeError
from ..media.sandbox import SandboxedReader
from ..media.sandbox_child import Limits
from ..session import PreparedReference

BUNDLED = "bundled"
_MOST_RECEIVING, _MOST_OF_ONE = 8, 2
"""Uploads that may be received, or wait to be prepared, at once; of one owner."""
_LIMITS = Limits(nice=5)
"""A decoder gets the time that live sessions leave."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass
class _Kept:
    prepared: PreparedReference
    owner: str
    used: float = field(default_factory=time.monotonic)


class References:
    """Prepared references by name.

    Args:
        most: uploads that are kept; beyond that the least recently used one is dropped, of the owner with most of them.
        seconds: used of a video. keep: seconds for which an unused upload is kept.
        megabytes: limit of an upload; its frames may take ten times as much on disk.
        folder: where uploads are kept for other replicas; None keeps them in this process alone.
        sandbox: whether uploads are decoded in a process of their own.
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
        sandbox: bool = True,
    ) -> None:
        self._engine, self._most, self._seconds = engine, most, seconds
        self._bytes, self._keep, self._folder, self._sandbox = megabytes << 20, keep, folder, sandbox
        self._permanent: dict[str, PreparedReference] = {}
        self._kept: dict[str, _Kept] = {}
        self._one_at_a_time = asyncio.Lock()
        self._receiving: Counter[str] = Counter()

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
                    self._kept[name] = _Kept(await self._prepare(self._folder / name), owner="")
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

    async def upload(
        self, body: AsyncIterator[bytes], owner: str = "", gone: Callable[[], Awaitable[bool]] | None = None
    ) -> tuple[str, PreparedReference]:
        """Prepare a video or picture; its random name is known to the uploader alone.

        Args:
            owner: of the upload, such as its address. gone: whether its client has left; then decoding stops.

        Raises:
            UploadTooLargeError, UnavailableError; and what `LipSyncEngine.prepare` raises: no face, no video, ...
        """
        if self._receiving.total() >= _MOST_RECEIVING or self._receiving[owner] >= _MOST_OF_ONE:
            raise UnavailableError("too many uploads at once", label="uploads", fix="retry later")
        name = secrets.token_urlsafe(12)
        self._receiving[owner] += 1
        try:
            with tempfile.TemporaryFile(prefix="lipstream-") as file:
                size = 0
                async for piece in body:
                    size += len(piece)
                    if size > self._bytes:
                        raise UploadTooLargeError(
                            f"more than {self._bytes >> 20} MB", expected="a few seconds of video", fix="cut it"
                        )
                    file.write(piece)
                file.flush()
                async with self._one_at_a_time, _readable(file) as path:
                    prepared = await self._prepare(path, gone)
                if self._folder:
                    file.seek(0)
                    await asyncio.to_thread(_keep_in, self._folder, name, file)
        finally:
            self._receiving[owner] -= 1
            self._receiving += Counter()  # forgets owners without any
        self._kept[name] = _Kept(prepared, owner)
        self._forget()
        return name, prepared

    async def _prepare(self, file: Path, gone: Callable[[], Awaitable[bool]] | None = None) -> PreparedReference:
        def prepare() -> PreparedReference:
            return self._engine.prepare(source, seconds=self._seconds, loop_bytes=10 * self._bytes)

        if not self._sandbox:
            source: SandboxedReader | str = str(file)
            return await asyncio.to_thread(prepare)
        source = reader = await asyncio.to_thread(SandboxedReader, file, limits=_LIMITS)
        preparing = asyncio.ensure_future(asyncio.to_thread(prepare))
        try:
            while not preparing.done():
                await asyncio.wait({preparing}, timeout=0.5)
                if gone is not None and not preparing.done() and await gone():
                    reader.stop()
                    gone = None
            return preparing.result()
        finally:
            reader.stop()
            await asyncio.wait({preparing})
            await asyncio.to_thread(reader.close)

    def _forget(self) -> None:
        now = time.monotonic()
        for name in [name for name, kept in self._kept.items() if now - kept.used > self._keep]:
            del self._kept[name]
        while len(self._kept) > self._most:
            owners = Counter(kept.owner for kept in self._kept.values())
            greedy, _ = owners.most_common(1)[0]
            _, name = min((kept.used, name) for name, kept in self._kept.items() if kept.owner == greedy)
            del self._kept[name]
        for file in self._folder.iterdir() if self._folder else ():
            if not _NAME.fullmatch(file.name.removeprefix(".")):  # the operator's
                continue
            with contextlib.suppress(OSError):  # another replica was faster, or it is a folder
                if file.is_file() and time.time() - file.stat().st_mtime > self._keep:
                    file.unlink()


@contextlib.asynccontextmanager
async def _readable(file: IO[bytes]) -> AsyncIterator[Path]:
    """A path by which other processes of this user can read an unnamed file; where there is none, that of a copy."""
    path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    if path.exists():
        yield path
        return
    descriptor, name = tempfile.mkstemp(prefix="lipstream-", suffix=".video")
    try:
        with os.fdopen(descriptor, "wb") as copy:
            file.seek(0)
            await asyncio.to_thread(shutil.copyfileobj, file, copy)
        yield Path(name)
    finally:
        os.unlink(name)


def _keep_in(folder: Path, name: str, file: IO[bytes]) -> None:
    """Copy `file` to `folder`, whole or not at all."""
    partial = folder / f".{name}"
    with partial.open("wb") as copy:
        shutil.copyfileobj(file, copy)
    partial.replace(folder / name)
