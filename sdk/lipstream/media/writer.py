"""Writes video files, completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream
from numpy.typing import ArrayLike

from ..atomic import Partial
from ..errors import ConfigError, OutputError
from .audio import check_channels, check_rate
from .audio_track import AudioTrack
from .container import PathLike
from .first_pass import FirstPass
from .hdr import Hdr
from .picture import Image, Picture, Rgb, as_picture, check_colour
from .pixel_format import PictureFormat
from .reader import FPS
from .threads import codec_threads
from .video_codec import VideoCodec, encoding
from .video_codec import lossless as lossless_encoding

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""FFmpeg's format for each suffix that can be written."""


MAX_SIDE = 16384
"""Pixels of the longest side of a file that is not lossless, the limit of x264."""


class VideoWriter:
    """Writes frames and audio to one file, .mp4 .m4v .mov .mkv, with AAC and the index at the front.

    Without `codec`, pictures of 8 bits are H.264, of more bits HEVC with 10, and those with alpha in .mov ProRes 4444;
    H.264, HEVC and AV1 are 4:2:0. Pictures that have the file's pixel format are encoded without a conversion. What the
    file does not keep of the pictures is in `losses`; transparent parts become black where the codec has no alpha.

    Time stamps come from counting frames and samples. The audio track gets the length of the video: silence is added
    at its end, or the excess is cut (logged as a warning from one frame's length on). Matroska cannot mark the last
    AAC frame as partly padding: an .mkv may play up to 1024 samples of silence more. Audio ahead of the video is
    buffered in memory, so write both in step.

    The file is written under a hidden name in the same folder and renamed when `close` succeeds. After an error,
    `abort`, or an exception in a ``with`` block, no partial file is left, and an older file of that name is unchanged.

    4:2:0 needs even sizes: an odd width or height is padded by repeating the last column or row; `stored_size` is
    the result. Audio at a rate that AAC lacks is resampled to the next higher one it has.

    Args:
        path: the file to write; its suffix chooses the format.
        width, height: of the frames, pixels.
        rate: frames per second.
        audio_rate: Hz of the audio; None for a file without audio.
        audio_channels: 1..8.
        codec: "h264", "hevc", "av1", "prores" (.mov and .mkv only), or None.
        crf: quality, 0 (best) .. 51; ProRes has only one.
        preset: speed, x264's "ultrafast" .. "veryslow"; not of ProRes.
        first_crf: encode pictures twice, first as H.264 of this quality, as the upstream system does.
        format: of the pictures, `VideoReader.info.format`: its colour is that of the file. Default: 8 bit, BT.709.
        hdr: metadata to write, `VideoReader.info.hdr`; only HEVC and AV1 hold them.
        sample_aspect_ratio: width of a pixel over its height.
        background: R'G'B' 0..255, behind pictures with alpha in a file without.
        lossless: FFV1 in the pixel format of `format` (R'G'B' by default) and float PCM, .mkv only: what is read back
            equals what was written bit for bit. `codec`, `crf`, `preset` and `hdr` do not apply.

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
        codec: VideoCodec | None = None,
        crf: int = 18,
        preset: str = "medium",
        first_crf: int | None = None,
        format: PictureFormat | None = None,
        hdr: Hdr | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
        background: Rgb = (0, 0, 0),
        lossless: bool = False,
    ) -> None:
        self.path = Path(path)
        self.width, self.height, self.rate = width, height, Fraction(rate)
        self._frames = self._encoded_frames = 0
        self._audio: AudioTrack | None = None
        self._check(crf, lossless)
        if first_crf is not None:
            self._check(first_crf, lossless)
        check_colour(background)
        for name, value in (("codec", codec), ("first_crf", first_crf)):
            if lossless and value is not None:
                raise ConfigError(
                    f"lossless=True with {name} {value!r}", expected="one of the two", fix="leave out one"
                )
        format = (format or PictureFormat("gbrp", width, height)).resized(width, height)
        suffix = self.path.suffix.lower()
        chosen = lossless_encoding(format) if lossless else encoding(codec, suffix, format, hdr, crf=crf, preset=preset)
        self._lossless = lossless
        self._background = background
        self._encoded, self._losses, self._transparent = chosen.format, chosen.losses, False
        self._first: FirstPass | None = None
        if first_crf is not None:
            self._first = FirstPass(self._encoded.resized(*self.stored_size), self.rate, crf=first_crf, preset=preset)
        if audio_rate is not None:
            check_rate(audio_rate)
            check_channels(audio_channels)

        self._partial = _reserve(self.path)
        self._remove = weakref.finalize(self, self._partial.remove)
        kind = FORMATS[suffix]
        faststart = {} if kind == "matroska" else {"movflags": "+faststart"}
        self._container = av.open(f"file:{self._partial.path}", "w", format=kind, options=faststart)
        with self._guarded(f"cannot start encoding {width}x{height} with preset {preset!r}", ConfigError):
            self._video: VideoStream = self._container.add_stream(  # type: ignore[assignment]
                chosen.encoder, self.rate, chosen.options
            )
            if chosen.tag:
                self._video.codec_context.codec_tag = chosen.tag
            self._describe(self._video, sample_aspect_ratio)
            if audio_rate is not None:
                self._audio = AudioTrack(self._container, audio_rate, audio_channels, lossless)
            self._container.start_encoding()

    @property
    def losses(self) -> tuple[str, ...]:
        """What the file does not keep of the pictures written so far, as text."""
        alpha = "the alpha channel is not kept, transparent parts show the background: write .mov, as ProRes"
        return self._losses + ((alpha,) if self._transparent else ())

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) in the file."""
        if self._lossless or "420" not in self._encoded.name:
            return self.width, self.height
        return self.width + self.width % 2, self.height + self.height % 2

    def write(self, frame: Picture | Image) -> None:
        """Append one frame, a picture or uint8 [height, width, 3] RGB. In the format to be encoded it is not converted.

        Raises:
            ConfigError: the frame is neither, or of another size.
        """
        self._check_open()
        picture = as_picture(frame)
        if (picture.width, picture.height) != (self.width, self.height):
            raise ConfigError(f"a frame of {picture.width}x{picture.height}", expected=f"{self.width}x{self.height}")
        with self._guarded("cannot write"):
            if picture.format.has_alpha and not self._encoded.has_alpha:
                self._transparent = self._transparent or picture.is_transparent
                picture = picture.over(self._background)
            stored = picture.converted(self._encoded).padded(*self.stored_size)
            self._frames += 1
            self._encode(self._first.push(stored) if self._first else [stored])
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

    def close(self, finish: Callable[[Path], None] | None = None) -> None:
        """Finish the file and rename it to `path`. May be called again.

        Args:
            finish: called with the complete file, which has still its hidden name, and may change its content. If it
                raises, no file is left.
        """
        if not self._remove.alive:
            return
        if not self._frames:
            self.abort()
            raise OutputError(f"{self.path}: no frame was written", expected="at least one frame")
        with self._guarded("cannot finish"):
            if self._audio:
                self._audio.finish(self._frames / self.rate)
            if self._first:
                self._encode(self._first.flush())
            packets = self._video.encode(None)
            if self._frames <= 2:  # x265 leaves the decoding time of so few frames undefined
                for packet in packets:
                    packet.dts = packet.pts
            self._container.mux(packets)
            self._container.close()
            if finish is not None:
                finish(self._partial.path)
            self._partial.replace_target()
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

    def _encode(self, pictures: Iterable[Picture]) -> None:
        for picture in pictures:
            with picture.timed(self._encoded_frames, 1 / self.rate) as frame:
                packets = self._video.encode(frame)
            self._encoded_frames += 1
            self._container.mux(packets)

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
        stream.pix_fmt = self._encoded.name
        context = stream.codec_context
        context.thread_count, context.thread_type = codec_threads(), "AUTO"
        context.time_base = 1 / self.rate
        context.sample_aspect_ratio = sample_aspect_ratio
        colour = self._encoded.colour
        if not self._encoded.is_rgb:
            context.colorspace = colour.matrix
            context.color_range = ColorRange.JPEG if colour.full_range else ColorRange.MPEG
        context.color_primaries = colour.primaries
        context.color_trc = colour.transfer

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
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is a device or a pipe", expected="the name of a file")
        if not path.parent.is_dir():
            raise OutputError(f"no such folder: {path.parent}", fix=f"mkdir -p {path.parent}")
        return Partial(path)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise OutputError(f"{path.name}: {os.strerror(errno.ENAMETOOLONG)}", fix="choose a shorter name") from error
        raise OutputError(
            f"{path.parent} cannot be written to: {getattr(error, 'strerror', None) or error}",
            fix="choose another folder, or change its permissions",
        ) from error
