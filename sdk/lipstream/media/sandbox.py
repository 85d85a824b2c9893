"""Untrusted videos and sound, decoded in a process of their own, which may take so much memory and time and no network.

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
from numpy.typing import NDArray

from ..errors import (
    AudioFormatError,
    ConfigError,
    LipStreamError,
    MediaOpenError,
    MediaTruncatedError,
    NoAudioError,
    NoVideoError,
)
from .audio import AudioInfo, AudioReader, check_channels, check_rate
from .av_frame import allocate
from .colour import Colour
from .container import PathLike
from .hdr import Hdr
from .picture import Picture
from .pixel_format import PictureFormat
from .reader import MAX_PIXELS, VideoInfo, VideoReader, first_held
from .sandbox_child import MOST_SAMPLES, Limits, decode

_ERRORS: dict[str, type[LipStreamError]] = {
    kind.code: kind for kind in (AudioFormatError, MediaOpenError, MediaTruncatedError, NoAudioError, NoVideoError)
}
_TURN = 0.2  # seconds after which a wait looks whether it is still wanted
_PATIENCE = 60.0  # seconds for each answer
_MOST_TEXT = 1 << 16


FILES = Limits(memory=8 << 30, cpu=86_400, pixels=MAX_PIXELS)
"""For files of the user's own choice, of any length."""


class SandboxedReader(VideoReader):
    """A `VideoReader` whose file is decoded in a limited process, anew for each iteration.

    Processes are started as by `multiprocessing`: a script that uses this begins its own work under
    ``if __name__ == "__main__":``.

    Args:
        path: a regular file. opencv: as of `VideoReader`. limits: of the process.
        deadline: seconds for each iteration, of which each frame may take 60.

    Raises:
        As `VideoReader`; MediaOpenError also where the file needs more than the limits, or its decoder crashes.
        ConfigError: no process can be started from this one.
    """

    def __init__(
        self, path: PathLike, *, opencv: bool = False, limits: Limits | None = None, deadline: float = 60.0
    ) -> None:
        self.path = Path(path)
        self._opencv, self._limits, self._deadline = opencv, limits or Limits(), deadline
        self._damaged: set[int] = set()
        self._defects: list[str] = []
        self._stopped = threading.Event()
        self._running: list[_Decoder] = []  # opened, and not yet iterated
        self._iterating: set[_Decoder] = set()
        self._held = 0
        self.interlaced = False
        decoder = self._start()
        with decoder.ended_on_error():
            self.info = _video_info(decoder.properties)
        self._running.append(decoder)  # the first iteration continues here

    def pictures(self) -> Iterator[Picture]:
        """See `VideoReader`."""
        decoder = self._running.pop() if self._running else self._start()
        self._iterating.add(decoder)
        with decoder:
            for index, (message, picture) in enumerate(first_held(self._frames(decoder), self._held)):
                if message["damaged"]:
                    self._damaged.add(index)
                self.interlaced = bool(message["interlaced"])
                yield picture
        self._iterating.discard(decoder)

    def _frames(self, decoder: _Decoder) -> Iterator[tuple[dict[str, Any], Picture]]:
        """Flags and pictures."""
        format = self.info.format
        size = sum(rows * columns for rows, columns in (format.shape(i) for i in range(len(format.planes))))
        while (message := decoder.message())["kind"] == "frame":
            yield message, _picture(decoder.receive(size * np.dtype(format.dtype).itemsize), format)
        self._defects = [str(defect) for defect in message["defects"]]

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
        return _Decoder(self.path, self._limits, self._deadline, self._stopped, sound=False, opencv=self._opencv)


class SandboxedAudioReader(AudioReader):
    """An `AudioReader` whose file is decoded in a limited process, anew for each iteration; see `SandboxedReader`.

    Raises:
        As `AudioReader`; MediaOpenError also where the file needs more than the limits, or its decoder crashes.
        ConfigError: no process can be started from this one.
    """

    def __init__(self, path: PathLike, *, limits: Limits | None = None, deadline: float = 60.0) -> None:
        self.path = Path(path)
        self._limits, self._deadline = limits or Limits(), deadline
        with self._start() as decoder, decoder.ended_on_error():
            self.info = _audio_info(decoder.properties)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        with self._start() as decoder:
            while decoder.message()["kind"] == "block":
                data = np.frombuffer(decoder.receive(4 * MOST_SAMPLES * self.info.channels), np.float32)
                yield data.reshape(-1, self.info.channels).copy()

    def _start(self) -> _Decoder:
        return _Decoder(self.path, self._limits, self._deadline, threading.Event(), sound=True, opencv=False)


class _Decoder:
    """One process that decodes one file once. Attributes: properties: of the file, as it says."""

    def __init__(
        self, path: Path, limits: Limits, deadline: float, stopped: threading.Event, *, sound: bool, opencv: bool
    ) -> None:
        self._path, self._stopped, self._end = path, stopped, time.monotonic() + deadline
        self._closing, self._closed = threading.Lock(), False
        if multiprocessing.current_process().daemon:
            raise ConfigError(
                "files to be decoded in processes of their own, in a process that may have none (daemon)",
                expected="a process that may start others",
                fix="use concurrent.futures.ProcessPoolExecutor in place of multiprocessing.Pool",
            )
        context = _context()
        theirs: Connection
        self._connection: Connection
        self._connection, theirs = context.Pipe(duplex=False)
        kind = {"sound": sound, "opencv": opencv}
        self._process = context.Process(target=decode, args=(theirs, str(path), limits), kwargs=kind, daemon=True)
        self._process.start()
        theirs.close()
        with self.ended_on_error():
            self._wait_for_start()
            self.properties: dict[str, Any] = self.message()["info"]

    def _wait_for_start(self) -> None:
        """Raise ConfigError if the process ends before it begins its work, which is no fault of the file."""
        if self._received(_MOST_TEXT) is None:
            raise ConfigError(
                "the process that decodes does not start: Python cannot import the program once more there",
                expected='a file whose own work is under if __name__ == "__main__":',
                fix="move it there; write a program that comes from standard input to a file",
            )

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

    @contextmanager
    def ended_on_error(self) -> Iterator[None]:
        """End the process if the block raises; what it says wrongly is an error of the file."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError):
            self.close()
            raise self._wrong() from None
        except BaseException:
            self.close()
            raise

    def message(self) -> dict[str, Any]:
        """What the process says next; its errors are raised."""
        try:
            message: dict[str, Any] = json.loads(self.receive(_MOST_TEXT))
            if message["kind"] == "error":
                kind = _ERRORS.get(message["code"], MediaOpenError)
                error = kind(message["found"], expected=message["expected"], fix=message["fix"])
            elif message["kind"] in ("opened", "frame", "block", "done"):
                return message
        except (ValueError, KeyError, TypeError):  # what comes from there is not trusted
            raise self._wrong() from None
        raise error

    def receive(self, most: int) -> bytes:
        """What the process sends next."""
        data = self._received(most)
        if data is None:
            raise self._beyond("cannot be decoded: its decoder crashed, or needs more than it may take")
        return data

    def _received(self, most: int) -> bytes | None:
        """What the process sends next; None if it has ended, or sends more than it may."""
        end = min(self._end, time.monotonic() + _PATIENCE)
        while True:
            if self._stopped.is_set():
                raise MediaOpenError(f"{self._path}: decoding was stopped")
            if time.monotonic() > end:
                raise self._beyond("takes too long to decode")
            try:
                if self._connection.poll(_TURN):
                    data: bytes = self._connection.recv_bytes(most)
                    return data
            except (EOFError, OSError):
                return None

    def _wrong(self) -> MediaOpenError:
        return self._beyond("cannot be decoded: its decoder does not answer as it should")

    def _beyond(self, why: str) -> MediaOpenError:
        return MediaOpenError(
            f"{self._path} {why}",
            expected="an ordinary file of moderate size",
            fix="convert it: ffmpeg -i FILE -vf scale=1280:-2 out.mp4",
        )


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


def _video_info(found: dict[str, Any]) -> VideoInfo:
    stored, hdr = found["format"], found["hdr"]
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
        hdr=None if hdr is None else Hdr.from_json(hdr),
    )


def _audio_info(found: dict[str, Any]) -> AudioInfo:
    info = AudioInfo(**found)
    check_rate(info.rate)
    check_channels(info.channels)
    return info
