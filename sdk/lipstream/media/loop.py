"""A source of frames played forwards and backwards for as long as the speech lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import ConfigError, NoVideoError
from .container import PathLike
from .picture import Image, Picture, as_picture
from .reader import VideoReader
from .spool import FrameSpool

_SLACK = 25  # error in a header's number of frames above which the source is decoded twice


def ping_pong(i: int, n: int) -> int:
    """Index in 0..n-1 at step i >= 0 of 0, 1, .. n-1, n-2, .. 1, 0, 1, ..: the turning frames appear once."""
    if n < 1 or i < 0:
        raise ValueError(f"no step {i} of {n} frames")
    i %= max(1, 2 * (n - 1))
    return min(i, 2 * (n - 1) - i)


def first_reused(n: int, length: int | None) -> int:
    """Lowest index that `length` steps (None: endless) of `ping_pong` over n frames visit a second time; n if none."""
    if length is None:
        return 0
    return n if length <= n else max(0, 2 * (n - 1) - (length - 1))


class FrameLoop:
    """Iterator over (source_index, picture) that reverses at both ends of the source.

    `source_index` is the index in the source, so that results for a picture can be cached. Memory use does not depend
    on the length: pictures that will be repeated are written to a temporary file when they are first decoded. It is
    deleted on close, on garbage collection and at the end of the process. With `length`, a video that is long enough
    writes none, a shorter one only the frames that it repeats.

    Args:
        source: a `VideoReader`, another iterable of pictures or RGB arrays uint8 [H, W, 3], or such in memory (a
            sequence, or an array [n, H, W, 3]), which must not change.
        length: number of frames to yield; None for no end.
        max_bytes: without `length`, playback reverses where the frames on disk reach this size.
        spool_dir: folder of the temporary file; the system's by default.

    Raises:
        NoVideoError: the source has no frame.
        ConfigError: a frame that is neither, or not of the first one's format.
        OutputError: the temporary file cannot be written.
        MediaTruncatedError: from a `VideoReader`.
    """

    def __init__(
        self,
        source: VideoReader | Iterable[Picture | Image] | Image,
        length: int | None = None,
        *,
        max_bytes: int | None = None,
        spool_dir: PathLike | None = None,
    ) -> None:
        if (length is not None and length < 1) or (max_bytes is not None and max_bytes < 1):
            raise ConfigError(f"a loop of length {length}, max_bytes {max_bytes}", expected="None, or at least 1")
        self.length = length
        self._max_bytes = max_bytes if length is None else None
        self._source = source
        self._in_memory = isinstance(source, Sequence | np.ndarray)
        self._count: int | None = _at_least_one(len(source)) if isinstance(source, Sequence | np.ndarray) else None
        self._first_pass = self._pictures()
        self._spool_dir = None if spool_dir is None else Path(spool_dir)
        self._spool: FrameSpool | None = None
        self._position = 0
        self._first: Picture | None = None
        self._closed = False
        expected = source.info.frames if isinstance(source, VideoReader) else None
        self._first_kept = 0  # frames below this index are not written
        if expected is not None and length is not None:
            self._first_kept = length if length <= expected else max(0, first_reused(expected, length) - _SLACK)

    @property
    def count(self) -> int | None:
        """Number of frames in the source; None until its end is reached."""
        return self._count

    def __iter__(self) -> FrameLoop:
        return self

    def __next__(self) -> tuple[int, Picture]:
        if self._closed or self._position == self.length:
            self.close()
            raise StopIteration
        index, frame = self._position, None
        if self._count is None:
            frame = None if self._is_full() else next(self._first_pass, None)
            if frame is None:
                self._count = _at_least_one(self._position)
                self._recover(self._count)
            elif index >= self._first_kept:
                self._keep(frame)
        if frame is None:
            index = ping_pong(self._position, self._count or 1)
            frame = self._recall(index)
        self._position += 1
        return index, frame

    def comes_back(self, index: int) -> bool:
        """Whether source frame `index`, which was just yielded, may be yielded again."""
        return self.length is None or self._in_memory or index >= self._first_kept

    def _is_full(self) -> bool:
        """Whether the frames on disk have reached `max_bytes`; the first frame is always kept."""
        if self._max_bytes is None or self._spool is None or not self._position:
            return False
        assert self._first is not None
        if (self._position + 1) * self._first.nbytes <= self._max_bytes:
            return False
        self._first_pass = iter(())
        return True

    def close(self) -> None:
        """Stop, and delete the temporary file. May be called again."""
        self._closed = True
        self._first_pass = iter(())
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> FrameLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pictures(self) -> Iterator[Picture]:
        """One pass over the source."""
        source = self._source.pictures() if isinstance(self._source, VideoReader) else self._source
        for index, frame in enumerate(source):
            yield self._checked(frame, index)

    def _keep(self, frame: Picture) -> None:
        if self._spool is None:
            self._spool = FrameSpool(self._spool_dir)
        self._spool.append(frame)

    def _recall(self, index: int) -> Picture:
        if self._in_memory:
            return self._checked(self._source[index], index)  # type: ignore[index]
        assert self._spool is not None
        return self._spool.read(index - self._first_kept)

    def _recover(self, count: int) -> None:
        """Decode the source again if it was shorter than its header said, so that needed frames were not written."""
        needed = first_reused(count, self.length)
        if needed >= self._first_kept:
            return
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self._first_kept = needed
        for index, frame in enumerate(self._pictures()):
            if index >= needed:
                self._keep(frame)

    def _checked(self, frame: Picture | Image, index: int) -> Picture:
        picture = as_picture(frame, f"frame {index}")
        if self._first is None:
            self._first = picture
        if picture.format != self._first.format:
            raise ConfigError(f"frame {index} is {picture.format}", expected=f"{self._first.format}, like the others")
        return picture


def _at_least_one(count: int) -> int:
    if count < 1:
        raise NoVideoError("the source of frames is empty")
    return count
