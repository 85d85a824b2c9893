"""Writes video files, H.264 and AAC or lossless, completely or not at all."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import ArrayLike, NDArray

from ..atomic import Partial
from ..errors import AudioFormatError, ConfigError, OutputError
from .audio import MAX_CHANNELS, check_rate
from .audio_track import AudioTrack
from .colour import Colour, from_rgb
from .container import PathLike
from .image import check_picture
from .reader import FPS
from .threads import codec_threads

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""FFmpeg's format for each suffix that can be written."""


MAX_SIDE = 16384
"""Pixels of the longest side that x264 takes."""


class VideoWriter:
    """Writes frames and audio to one file: .mp4 .m4v .mov .mkv with H.264 (yuv420p) and AAC, index at the front.

    Time stamps come from counting frames and samples. The audio track gets the length of the video: silence is added
    at its end, or the excess is cut (logged as a warning from one frame's length on). Matroska cannot mark the last
    AAC frame as partly padding: an .mkv may play up to 1024 samples of silence more. Audio ahead of the video is
    buffered in memory, so write both in step.

    The file is written under a hidden name in the same folder and renamed when `close` succeeds. After an error,
    `abort`, or an exception in a ``with`` block, no partial file is left, and an older file of that name is unchanged.

    yuv420p needs even sizes: an odd width or height is padded by repeating the last column or row; `stored_size` is
    the result. Audio at a rate that AAC lacks is resampled to the next higher one it has.

    Args:
        path: the file to write; its suffix chooses the format.
        width, height: of the frames, pixels.
        rate: frames per second.
        audio_rate: Hz of the audio; None for a file without audio.
        audio_channels: 1..8.
        crf: quality of x264, 0 (best) .. 51.
        preset: speed of x264, "ultrafast" .. "veryslow".
        colour: tags to write, and the matrix and range to encode with; give `VideoReader.info.colour`.
        sample_aspect_ratio: width of a pixel over its height.
        lossless: FFV1 in R'G'B' and float PCM, .mkv only: what is read back equals what was written bit for bit.

    Raises:
        OutputError: unknown suffix, no such folder, folder not writable, disk full, or no frame before `close`.
        ConfigError: an argument or a frame is not as stated here.
        AudioFormatError: an audio argument is not valid, or `to_float` rejects the samples.
    """

    def __init__(
        self,
        path: PathLike,
        width: int,
        height: int,
        *,
        rate: int | Fraction = FPS,
        audio_rate: int | None = None,
        audio_channels: int = 1,
        crf: int = 18,
        preset: str = "medium",
        colour: Colour | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
        lossless: bool = False,
    ) -> None:
        self.path = Path(path)
        self.width, self.height, self.rate = width, height, Fraction(rate)
        self._frames = 0
        self._audio: AudioTrack | None = None
        self._reformatter = VideoReformatter()
        self._pixel_format = "bgr0" if lossless else "yuv420p"
        self._colour = colour or Colour()
        self._padding = (0, 0) if lossless else (height % 2, width % 2)
        self._check(crf, lossless)
        if audio_rate is not None:
            check_rate(audio_rate)
            if not 1 <= audio_channels <= MAX_CHANNELS:
                raise AudioFormatError(f"{audio_channels} audio channels", expected=f"1..{MAX_CHANNELS}")

        self._partial = _reserve(self.path)
        self._remove = weakref.finalize(self, self._partial.remove)
        kind = FORMATS[self.path.suffix.lower()]
        faststart = {} if kind == "matroska" else {"movflags": "+faststart"}
        self._container = av.open(f"file:{self._partial.path}", "w", format=kind, options=faststart)
        with self._guarded(f"cannot start encoding {width}x{height} with preset {preset!r}", ConfigError):
            options = {} if lossless else {"crf": str(crf), "preset": preset}
            self._video = self._container.add_stream("ffv1" if lossless else "libx264", self.rate, options)
            self._describe(self._video, sample_aspect_ratio)
            if audio_rate is not None:
                self._audio = AudioTrack(self._container, audio_rate, audio_channels, lossless)
            self._container.start_encoding()

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) in the file."""
        return self.width + self._padding[1], self.height + self._padding[0]

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame, uint8 [height, width, 3] R'G'B'."""
        self._check_open()
        check_picture(frame, (self.height, self.width, 3))
        with self._guarded("cannot write"):
            if any(self._padding):
                frame = np.pad(frame, (*((0, n) for n in self._padding), (0, 0)), mode="edge")
            picture = from_rgb(np.ascontiguousarray(frame), self._reformatter, self._colour, self._pixel_format)
            picture.pts, picture.time_base = self._frames, 1 / self.rate
            self._frames += 1
            self._container.mux(self._video.encode(picture))
            if self._audio:
                self._audio.encode_until(self._frames / self.rate)

    def write_audio(self, samples: ArrayLike) -> None:
        """Append audio, int16 or float32 [n] or [n, channels], at the rate and with the channels given at the start."""
        self._check_open()
        if self._audio is None:
            raise ConfigError("audio for a file that was opened without audio", fix="give audio_rate to VideoWriter")
        checked = self._audio.checked(samples)
        with self._guarded("cannot write"):
            self._audio.push(checked)
            self._audio.encode_until(self._frames / self.rate)

    def close(self) -> None:
        """Finish the file and rename it to `path`. May be called again."""
        if not self._remove.alive:
            return
        if not self._frames:
            self.abort()
            raise OutputError(f"{self.path}: no frame was written", expected="at least one frame")
        with self._guarded("cannot finish"):
            if self._audio:
                self._audio.finish(self._frames / self.rate)
            self._container.mux(self._video.encode(None))
            self._container.close()
            self._partial.path.replace(self.path)
            self._remove.detach()
            self._partial.release()

    def abort(self) -> None:
        """Remove what was written so far. May be called again, and does nothing after `close`."""
        if not self._remove.alive:
            return
        # The muxer may write once more, to a disk that is full; the file is removed in any case.
        with contextlib.suppress(av.FFmpegError, OSError):
            self._container.close()
        self._remove()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _check(self, crf: int, lossless: bool) -> None:
        suffix = self.path.suffix.lower()
        if suffix not in FORMATS:
            raise OutputError(f"{self.path}: unknown suffix {suffix!r}", expected=f"one of {' '.join(FORMATS)}")
        if lossless and suffix != ".mkv":
            raise ConfigError(f"lossless=True with suffix {suffix}", expected=".mkv")
        if self.width < 1 or self.height < 1 or self.rate <= 0:
            raise ConfigError(f"{self.width}x{self.height} at {self.rate} per second", expected="positive numbers")
        if not lossless and max(self.width, self.height) > MAX_SIDE:
            raise ConfigError(
                f"{self.width}x{self.height} pixels",
                expected=f"sides of at most {MAX_SIDE}, the limit of H.264",
                fix="scale it",
            )
        if not isinstance(crf, int) or not 0 <= crf <= 51:
            raise ConfigError(f"crf={crf!r}", expected="0 (best) .. 51")

    def _describe(self, stream: VideoStream, sample_aspect_ratio: Fraction) -> None:
        stream.width, stream.height = self.stored_size
        stream.pix_fmt = self._pixel_format
        context = stream.codec_context
        context.thread_count = codec_threads()
        context.time_base = 1 / self.rate
        context.sample_aspect_ratio = sample_aspect_ratio
        if self._pixel_format == "yuv420p":
            context.colorspace = self._colour.matrix
            context.color_range = ColorRange.JPEG if self._colour.full_range else ColorRange.MPEG
        context.color_primaries = self._colour.primaries
        context.color_trc = self._colour.transfer

    def _check_open(self) -> None:
        if not self._remove.alive:
            raise OutputError(f"{self.path}: the writer is closed", fix="open a new VideoWriter")

    @contextlib.contextmanager
    def _guarded(self, what: str, kind: type[ConfigError | OutputError] = OutputError) -> Iterator[None]:
        """Remove the partial file on any exception, and convert FFmpeg's errors."""
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise kind(
                f"{self.path}: {what}: {error.strerror or error}", fix="check the options and the disk"
            ) from error
        except BaseException:
            self.abort()
            raise


def ensure_distinct(path: PathLike, *inputs: PathLike) -> None:
    """Raise OutputError if `path` is one of the `inputs`, under any name: it would be overwritten."""
    for source in inputs:
        try:
            same = Path(path).resolve() == Path(source).resolve()
            same = same or (os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source))
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
            raise OutputError(f"{path} cannot be compared with {source}: {error}", fix="check both paths") from error
        if same:
            raise OutputError(f"{path} is also the input {source}", fix="write to another file")


def _reserve(path: Path) -> Partial:
    """Create an empty hidden file next to `path`, which also shows that the folder can be written to."""
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a directory", expected="the name of a file")
        if not path.parent.is_dir():
            raise OutputError(f"no such folder: {path.parent}", fix=f"mkdir -p {path.parent}")
        return Partial(path)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path.parent} cannot be written to: {getattr(error, 'strerror', None) or error}",
            fix="choose another folder, or change its permissions",
        ) from error
