"""Untrusted videos, decoded in a process of their own, which may take so much memory and time and no network.

A decoder that a file makes crash, loop or allocate takes that process with it, and nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LipStreamError, LipStreamInternalError, MediaOpenError, MediaTruncatedError, NoVideoError
from .av_frame import allocate
from .colour import Colour
from .container import PathLike
from .picture import Picture
from .pixel_format import PictureFormat
from .reader import VideoInfo, VideoReader
from .sandbox_child import Limits, decode

_ERRORS: dict[str, type[LipStreamError]] = {
    kind.code: kind for kind in (MediaOpenError, MediaTruncatedError, NoVideoError)
}
_TURN = 0.2  # seconds after which a wait looks whether it is still wanted
_MOST_TEXT = 1 << 16


class SandboxedReader(VideoReader):
    """A `VideoReader` whose file is decoded in a limited process, anew for each iteration.

    Processes are started as by `multiprocessing`: a script that uses this begins its own work under
    ``if __name__ == "__main__":``.

    Args:
        path: a regular file. retimed: as of `VideoReader`. limits: of the process.
        deadline: seconds for each iteration.

    Raises:
        As `VideoReader`; MediaOpenError also where the file needs more than the limits, or its decoder crashes.
    """

    def __init__(
        self, path: PathLike, *, retimed: bool = True, limits: Limits | None = None, deadline: float = 60.0
    ) -> None:
        self.path = Path(path)
        self._retimed, self._limits, self._deadline = retimed, limits or Limits(), deadline
        self._damaged: set[int] = set()
        self._defects: list[str] = []
        self._stopped = threading.Event()
        self._running: list[_Decoder] = []  # opened, and not yet iterated
        self._iterating: set[_Decoder] = set()
        self.interlaced = False
        decoder = self._start()
        self.info = decoder.info
        self._running.append(decoder)  # the first iteration continues here

    def pictures(self) -> Iterator[Picture]:
        """See `VideoReader`."""
        decoder = self._running.pop() if self._running else self._start()
        self._iterating.add(decoder)
        with decoder:
            for index, (message, picture) in enumerate(decoder.frames()):
                if message["damaged"]:
                    self._damaged.add(index)
                self.interlaced = bool(message["interlaced"])
                yield picture
            self._defects = decoder.defects
        self._iterating.discard(decoder)

    def hold_first(self, frames: int) -> None:
        raise LipStreamInternalError("a sandboxed reader holds no first frame")

    @property
    def defects(self) -> list[str]:
        """See `VideoReader`."""
        return self._defects

    def stop(self) -> None:
        """End decoding; the thread that iterates gets MediaOpenError. From any thread."""
        self._stopped.set()

    def close(self) -> None:
        """End all processes. Frames must not be iterated any more; may be called again."""
        self._stopped.set()
        for decoder in (*self._running, *self._iterating):
            decoder.close()

    def _start(self) -> _Decoder:
        return _Decoder(self.path, self._retimed, self._limits, self._deadline, self._stopped)


class _Decoder:
    """One process that decodes one file once. Attributes: info. defects: when all frames were taken."""

    def __init__(self, path: Path, retimed: bool, limits: Limits, deadline: float, stopped: threading.Event) -> None:
        self._path, self._stopped, self._end = path, stopped, time.monotonic() + deadline
        self._closing, self._closed = threading.Lock(), False
        context = _context()
        theirs: Connection
        self._connection: Connection
        self._connection, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=decode, args=(theirs, str(path), retimed, limits), daemon=True)
        self._process.start()
        theirs.close()
        self.defects: list[str] = []
        with self._ended_on_error():
            self.info = _info(self._message()["info"])

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. May be called again."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._process.kill()
            self._process.join()
            self._process.close()
            self._connection.close()

    def frames(self) -> Iterator[tuple[dict[str, Any], Picture]]:
        """Flags and pictures."""
        format = self.info.format
        size = sum(rows * columns for rows, columns in (format.shape(i) for i in range(len(format.planes))))
        while (message := self._message())["kind"] == "frame":
            yield message, _picture(self._receive(size * np.dtype(format.dtype).itemsize), format)
        self.defects = [str(defect) for defect in message["defects"]]

    def _message(self) -> dict[str, Any]:
        try:
            message: dict[str, Any] = json.loads(self._receive(_MOST_TEXT))
            if message["kind"] == "error":
                kind = _ERRORS.get(message["code"], MediaOpenError)
                error = kind(message["found"], expected=message["expected"], fix=message["fix"])
            elif message["kind"] in ("opened", "frame", "done"):
                return message
        except (ValueError, KeyError, TypeError):  # what comes from there is not trusted
            raise self._beyond("cannot be decoded: its decoder does not answer as it should") from None
        raise error

    def _receive(self, most: int) -> bytes:
        """What the process sends next."""
        while True:
            if self._stopped.is_set():
                raise MediaOpenError(f"{self._path}: decoding was stopped")
            if time.monotonic() > self._end:
                raise self._beyond("takes too long to decode")
            try:
                if self._connection.poll(_TURN):
                    data: bytes = self._connection.recv_bytes(most)
                    return data
            except (EOFError, OSError):  # the process has ended, or sends more than it may
                raise self._beyond("cannot be decoded: its decoder crashed, or needs more than it may take") from None

    def _beyond(self, why: str) -> MediaOpenError:
        return MediaOpenError(
            f"{self._path} {why}",
            expected="an ordinary video or picture of moderate size",
            fix="convert it: ffmpeg -i FILE -vf scale=1280:-2 out.mp4",
        )

    @contextmanager
    def _ended_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


@cache
def _context() -> Any:
    """How processes are started: forked from one that has imported this module, where the system can do that."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.sandbox_child"])
    return context


def _picture(data: bytes, format: PictureFormat) -> Picture:
    frame, planes = allocate(format)
    at = 0
    for plane in planes:
        plane[...] = np.frombuffer(data, plane.dtype, plane.size, at).reshape(plane.shape)
        at += plane.nbytes
    return Picture(frame, format)


def _info(found: dict[str, Any]) -> VideoInfo:
    stored = found["format"]
    format = PictureFormat(
        stored["name"], stored["width"], stored["height"], Colour(**stored["colour"]), tuple(stored["siting"])
    )
    return VideoInfo(
        width=format.width,
        height=format.height,
        fps=Fraction(found["fps"]) if found["fps"] else None,
        duration=found["duration"],
        start_time=found["start_time"],
        sample_aspect_ratio=Fraction(found["sample_aspect_ratio"]),
        format=format,
        hdr=None,
    )
