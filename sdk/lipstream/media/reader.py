"""Video files as pictures at 25 per second."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ..errors import MediaOpenError, NoVideoError
from .av_frame import convert, siting_of
from .colour import Colour
from .container import MAX_STEP, PathLike, decode, frame_duration, may_reset, open_input, start_of, stream_duration
from .deinterlace import deinterlaced
from .hdr import Hdr
from .opencv import opencv_format, opencv_frame
from .picture import Image, Picture
from .pixel_format import PictureFormat, planar
from .side_data import side_data_of, turn_of
from .threads import codec_threads

FPS = 25
"""Frames per second of everything that LipStream reads and generates."""

MAX_PIXELS = 8192 * 8192
"""Pixels of the largest picture that is decoded; it takes 192 MiB."""

_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails
_STATE_SITING = ("h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video")  # of others "left" is assumed, as in players
_T = TypeVar("_T")
_Opened = tuple[InputContainer, VideoStream, Iterator[av.VideoFrame]]


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file.

    Attributes:
        width, height: pixels, after the rotation that the file asks for.
        fps: frames per second of the source on average; None if unknown.
        duration: seconds according to the header; None if not stated.
        start_time: of the first frame, in seconds after the file's start, which is that of its earliest stream
            (`VideoReader` shows it at 0).
        sample_aspect_ratio: width of a pixel over its height, after rotation.
        format: size, pixel format and colour of the pictures.
        hdr: metadata of the mastering display and the light levels; None if there are none.
    """

    width: int
    height: int
    fps: Fraction | None
    duration: float | None
    start_time: float
    sample_aspect_ratio: Fraction
    format: PictureFormat
    hdr: Hdr | None

    @property
    def colour(self) -> Colour:
        """Matrix, primaries, transfer and range of the source."""
        return self.format.colour

    @property
    def frames(self) -> int | None:
        """Expected number of frames at 25 per second, from `duration`; None if that is unknown."""
        return None if self.duration is None else max(1, math.floor(self.duration * FPS + 0.5))


class VideoReader:
    """Frames of a video or image file at exactly 25 per second: by iteration as RGB arrays, or as `pictures`.

    The first iteration continues what opening began, and further ones open the file again, so a reader can be iterated
    any number of times. It holds the file open up to the end of the first iteration, and about one decoded frame.
    Iterating yields new arrays, uint8 [H, W, 3] R'G'B', 0..255, that the caller may write to.

    Output frame i shows the source frame current at i/25 s after the first one, by presentation time: sources of
    any rate, constant or variable, keep their speed. There are round(25 * duration) of them, at least one. Rotation
    and mirroring stated in the file are applied, interlaced pictures are deinterlaced. Where a stream changes its size
    midway, pictures are fitted into the first size, with black borders.

    Attributes:
        interlaced: whether pictures read so far were interlaced.

    Args:
        path: a regular file.
        opencv: read as by `cv2.VideoCapture`: stored frames, so that a video of another rate changes its speed, not
            deinterlaced, in OpenCV's R'G'B' (`media.opencv`).
        codecs: decoders that may run, by FFmpeg's names; None for all. most_pixels: of a picture.

    Raises:
        MediaOpenError: missing, a directory, unreadable, not media, of another codec, or larger than `most_pixels`.
        NoVideoError: no video stream (cover art does not count), or one without frames.
        MediaTruncatedError: the file is damaged, or ends before its header says; also raised during iteration.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        opencv: bool = False,
        codecs: frozenset[str] | None = None,
        most_pixels: int = MAX_PIXELS,
    ) -> None:
        self.path = Path(path)
        self._opencv, self._codecs, self._most_pixels = opencv, codecs, most_pixels
        self._damaged: set[int] = set()
        self._held = 0
        self._sizes: set[tuple[int, int]] = set()  # of stored pictures, other than the first one's
        self.interlaced = False
        container, stream, frames = self._open()
        first = next(frames, None)
        if first is None:
            container.close()
            raise NoVideoError(f"{self.path}: its video stream has no frames")
        # The first iteration continues here: opening a file again takes as long as decoding ten frames.
        self._begun: list[_Opened] = [(container, stream, chain([first], frames))]
        duration = stream_duration(container, stream)
        side_data = side_data_of(first)
        self._turn = turn_of(side_data, container.format.name, self.path)
        ratio = stream.sample_aspect_ratio or Fraction(1)
        self._stored = PictureFormat(planar(first.format.name), first.width, first.height, Colour.of(first))
        if stream.codec_context.name in _STATE_SITING:
            self._stored = replace(self._stored, siting=siting_of(first, self._stored))
        if opencv:
            self._stored = opencv_format(self._stored)
        shown = self._stored.turned(*self._turn)
        self.info = VideoInfo(
            width=shown.width,
            height=shown.height,
            fps=stream.average_rate or stream.guessed_rate,
            duration=None if duration is None else float(duration),
            start_time=float(first.time or 0.0) - start_of(container),
            sample_aspect_ratio=1 / ratio if self._turn[0] else ratio,
            format=shown,
            hdr=None if opencv else Hdr.of(side_data),
        )

    def __iter__(self) -> Iterator[Image]:
        for picture in self.pictures():
            yield picture.rgb

    def pictures(self) -> Iterator[Picture]:
        """The frames in the source's pixel format, as far as it is planar: all with `info.format`."""
        try:
            container, stream, frames = self._begun.pop()  # by one thread only
        except IndexError:
            container, stream, frames = self._open()
        with container:
            timed = _timed(container, stream, frames)
            shown = (frame for _, _, frame in timed) if self._opencv else retime(timed)
            last: av.VideoFrame | None = None
            for index, frame in enumerate(first_held(shown, self._held)):
                if frame.is_corrupt:
                    self._damaged.add(index)
                if frame is not last:
                    last, picture = frame, self._picture(frame)
                yield picture

    def close(self) -> None:
        """Close the file, if no iteration has begun. May be called again."""
        while self._begun:
            self._begun.pop()[0].close()

    def hold_first(self, frames: int) -> None:
        """From the next iteration on, show the first picture for `frames` frames, 0 or more, before its time."""
        self._held = frames
        duration = self.info.duration
        self.info = replace(self.info, duration=None if duration is None else duration + frames / FPS)

    @property
    def defects(self) -> list[str]:
        """What cannot be right in the pictures read so far, as text."""
        if not self._sizes:
            return []
        sizes = ", ".join(f"{width}x{height}" for width, height in sorted(self._sizes))
        return [f"the picture changes its size to {sizes}: fitted into its first, {self._stored}"]

    def _open(self) -> _Opened:
        container = open_input(self.path)
        stream = _pick(container, self.path, self._codecs, self._most_pixels)
        frames = decode(container, stream, self.path)
        return container, stream, frames if self._opencv else self._progressive(frames)

    def _progressive(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """`frames`, from the first interlaced one on through a deinterlacer, which leaves progressive ones alone."""
        for frame in frames:
            if frame.interlaced_frame:
                self.interlaced = True
                yield from deinterlaced(chain([frame], frames))
                return
            yield frame

    def _picture(self, frame: av.VideoFrame) -> Picture:
        found = replace(
            self._stored, name=frame.format.name, width=frame.width, height=frame.height, colour=Colour.of(frame)
        )
        if self._opencv:
            frame, found = opencv_frame(frame), self._stored.resized(frame.width, frame.height)
        size = found.width, found.height
        if size != (self._stored.width, self._stored.height):
            self._sizes.add(size)
            kept = self._stored.resized(*size)
            return Picture(convert(frame, found, kept), kept).letterboxed(self._stored).turned(*self._turn)
        if found != self._stored:
            frame = convert(frame, found, self._stored)
        return Picture(frame, self._stored).turned(*self._turn)

    def damaged(self, index: int) -> bool:
        """Whether the file is damaged at frame `index`, which must have been iterated."""
        return index in self._damaged


def retime(timed: Iterable[tuple[Fraction, Fraction, _T]], fps: int = FPS) -> Iterator[_T]:
    """Resample items in time, by holding each one until the next.

    Args:
        timed: (start, duration, item) in seconds, starts not decreasing, the first at 0.
        fps: items per second wanted.

    Yields:
        for i = 0 .. max(1, round(fps * end)) - 1 the last item that starts at or before i / fps; `end` is the end of
        the last item. An output item is yielded as soon as it is certain to exist.
    """
    recent: deque[tuple[Fraction, _T]] = deque()
    index = 0
    end = Fraction(0)

    def current() -> _T:
        while len(recent) > 1 and recent[1][0] * fps <= index:
            recent.popleft()
        return recent[0][1]

    for start, duration, item in timed:
        recent.append((start, item))
        end = max(end, start + duration)
        while start * fps >= index + Fraction(1, 2):
            yield current()
            index += 1
    while recent and index < max(1, math.floor(end * fps + Fraction(1, 2))):
        yield current()
        index += 1


def first_held(items: Iterable[_T], times: int) -> Iterator[_T]:
    """`items`, the first one repeated `times` times before itself."""
    for item in items:
        yield from repeat(item, times)
        times = 0
        yield item


def _pick(container: InputContainer, path: Path, codecs: frozenset[str] | None, most_pixels: int) -> VideoStream:
    """The stream that a player would show: no cover art; the default one, then the largest."""
    candidates = [s for s in container.streams.video if not s.disposition & _PICTURE]
    if not candidates:
        what = "only cover art" if container.streams.video else "no video stream"
        raise NoVideoError(f"{path} holds {what}", fix="give a video or image file as the source of frames")
    whole = [s for s in candidates if not s.disposition & Disposition.dependent]
    if len(candidates) > 2 * len(whole):
        raise MediaOpenError(
            f"{path} is a picture in {len(candidates) - len(whole)} tiles, which cannot be joined here",
            expected="one picture in one piece",
            fix="save it as JPEG or PNG",
        )
    known = [s for s in whole if s.codec_context is not None]
    if not known:
        raise MediaOpenError(f"{path}: the codec of stream {whole[0].index} is unknown to this FFmpeg")
    stream = max(known, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))
    if codecs is not None and stream.codec_context.name not in codecs:
        raise MediaOpenError(
            f"{path} is encoded as {stream.codec_context.name}, which is not decoded here",
            expected="H.264, HEVC, VP8, VP9, AV1, MPEG-4, ProRes, or a picture",
            fix="convert it: ffmpeg -i FILE out.mp4",
        )
    if stream.width * stream.height > most_pixels:
        raise MediaOpenError(
            f"{path} shows {stream.width} x {stream.height} pixels",
            expected=f"at most {most_pixels / (1 << 20):g} Mi pixels",
            fix="scale it down first",
        )
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = codec_threads()
    return stream


def _timed(
    container: InputContainer, stream: VideoStream, frames: Iterator[av.VideoFrame]
) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
    """Decoded frames with start, from 0 and never decreasing, and duration in seconds.

    A frame without time stamp, or after a reset of the clock, follows the previous one. A reset is a step back of more
    than a frame, or forward by more than `MAX_STEP` if the format allows resets.
    """
    resets = may_reset(container)
    offset: Fraction | None = None
    last = following = Fraction(0)
    for frame in frames:
        if frame.pts is None:
            start = following
        else:
            assert frame.time_base is not None
            clock = Fraction(frame.pts * frame.time_base)
            if offset is None:
                offset = -clock
            if clock + offset < 2 * last - following or (resets and clock + offset > following + MAX_STEP):
                offset = following - clock
            start = max(clock + offset, last)
        duration = frame_duration(frame, stream)
        last, following = start, start + duration
        yield start, duration, frame
