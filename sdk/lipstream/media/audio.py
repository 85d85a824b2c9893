"""Audio files as blocks of samples, and the validation of sample arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeGuard

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import ArrayLike, NDArray

from ..errors import AudioFormatError, MediaOpenError, NoAudioError
from .container import MAX_STEP, PathLike, decode, may_reset, open_input, start_of, stream_duration

MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 8
LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")
"""FFmpeg's channel layout for 1..8 channels."""

# Resampling and mixing overshoot 1.0 slightly; larger values mean samples that were never scaled to -1..1.
_MAX_FLOAT = 8.0

# Containers with a time stamp for each packet. Elsewhere FFmpeg counts, or estimates from sizes (AVI).
_TIMED = ("mov", "matroska", "mpegts", "mpeg", "flv", "asf", "nut", "mxf")
_JITTER = 0.1  # seconds by which time stamps may be off without a hole, as in FFmpeg's min_hard_comp
_MOST_OVERLAP = 1.0  # seconds; a larger step back is a reset of the clock
_MOST_SILENCE = 3600  # seconds; a larger step forward, too


@dataclass(frozen=True)
class AudioInfo:
    """Properties of an audio file.

    Attributes:
        rate: samples per second.
        channels: number of channels.
        duration: seconds according to the header; None if not stated.
        start_time: of the first sample, in seconds after the file's start, which is that of its earliest stream.
        track: which of the file's audio tracks is read, from 1. tracks: how many there are.
    """

    rate: int
    channels: int
    duration: float | None
    start_time: float
    track: int
    tracks: int


class AudioReader:
    """Blocks of float32 [n, channels] samples of an audio or video file, at its own rate and channel count.

    Each iteration opens the file again, so a reader can be iterated any number of times. Memory use does not depend on
    the length. The encoder's delay and the padding at the end are removed if the file states them.
    A hole of more than 0.1 s between the time stamps of a container is filled with silence, what overlaps by more than
    that is left out, so sample n is at n / rate seconds after the first one. Full scale is -1..1; a lossy codec may
    exceed it.

    Of several tracks the one marked as default is read, else the first, among those that can be decoded.

    Args:
        path: a regular file. codecs: decoders that may run, by FFmpeg's names; None for all.

    Raises:
        MediaOpenError: missing, a directory, unreadable, not media, or sound that no decoder here can read.
        NoAudioError: no audio stream, or one without samples.
        MediaTruncatedError: the file is damaged, or ends before its header says; also raised during iteration.
        AudioFormatError: rate or channels change within the file; raised during iteration.
    """

    def __init__(self, path: PathLike, *, codecs: frozenset[str] | None = None) -> None:
        self.path, self._codecs = Path(path), codecs
        with open_input(self.path) as container:
            stream = _pick(container, self.path, codecs)
            first = next(decode(container, stream, self.path), None)
            if first is None:
                raise NoAudioError(f"{self.path}: its audio stream has no samples")
            if first.layout.nb_channels > MAX_CHANNELS:
                raise AudioFormatError(
                    f"{self.path} has {first.layout.nb_channels} audio channels",
                    expected=f"1..{MAX_CHANNELS}",
                    fix="mix it down first: ffmpeg -i IN -ac 2 OUT",
                )
            check_rate(first.sample_rate)
            duration = stream_duration(container, stream)
            self.info = AudioInfo(
                rate=first.sample_rate,
                channels=first.layout.nb_channels,
                duration=None if duration is None else float(duration),
                start_time=float(first.time or 0.0) - start_of(container),
                track=container.streams.audio.index(stream) + 1,
                tracks=len(container.streams.audio),
            )

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        with open_input(self.path) as container:
            stream = _pick(container, self.path, self._codecs)
            # To packed float32: exact for 16 and 24 bit, and PyAV does not support eight planes.
            convert = av.AudioResampler(format="flt")
            clock = _Clock(self.info, container) if container.format.name.startswith(_TIMED) else None
            for frame, stated in _with_stated_length(decode(container, stream, self.path)):
                if (frame.sample_rate, frame.layout.nb_channels) != (self.info.rate, self.info.channels):
                    raise AudioFormatError(
                        f"{self.path} changes to {frame.sample_rate} Hz, {frame.layout.nb_channels} channels later",
                        expected=f"{self.info.rate} Hz, {self.info.channels} channels throughout",
                    )
                time = frame.time
                for packed in convert.resample(frame):
                    block = np.asarray(packed.to_ndarray(), np.float32).reshape(-1, self.info.channels)[:stated]
                    if clock is None:
                        yield block
                    else:
                        yield from clock.placed(time, block)


class _Clock:
    """Places blocks of samples by their time stamps."""

    def __init__(self, info: AudioInfo, container: InputContainer) -> None:
        self._rate, self._channels = info.rate, info.channels
        self._most = MAX_STEP if may_reset(container) else _MOST_SILENCE
        self._position = 0  # samples yielded
        self._origin: int | None = None  # time stamp of position 0, in samples

    def placed(self, time: float | None, block: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """`block`, float32 [n, channels], at `time` in seconds: after silence, cut at its beginning, or as it is."""
        if time is not None:
            at = round(time * self._rate)
            if self._origin is None:
                self._origin = at
            ahead = (at - self._origin - self._position) / self._rate
            if ahead > self._most or ahead < -_MOST_OVERLAP:
                self._origin = at - self._position
            elif ahead > _JITTER:
                self._position += round(ahead * self._rate)
                yield from silence(round(ahead * self._rate), self._channels, self._rate)
            elif ahead < -_JITTER:
                block = block[round(-ahead * self._rate) :]
        self._position += len(block)
        yield block


def silence(samples: int, channels: int, rate: int) -> Iterator[NDArray[np.float32]]:
    """Blocks of zeros, float32 [at most a second, channels], `samples` in total."""
    for start in range(0, samples, rate):
        yield np.zeros((min(rate, samples - start), channels), np.float32)


def read_audio(path: PathLike) -> tuple[NDArray[np.float32], int]:
    """The whole audio of an audio or video file: (samples float32 [n, channels], rate). Errors as `AudioReader`."""
    reader = AudioReader(path)
    return np.concatenate(list(reader)), reader.info.rate


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples in [-1, 1] -> int16, rounded; values beyond are clipped. Returns exactly what `to_float` was given."""
    return np.asarray(np.clip(np.rint(samples * 32768), -32768, 32767), np.int16)


def to_float(pcm: ArrayLike) -> NDArray[np.float32]:
    """Check samples and convert them to float32 [n, channels].

    Args:
        pcm: int16, or float32 or float64 with full scale -1..1; shape [n] or [n, channels] with 1..8 channels; n may
            be 0. Floats a little beyond full scale are kept as they are, not clipped.

    Returns:
        float32 [n, channels]; int16 is divided by 32768. It may share memory with `pcm`.

    Raises:
        AudioFormatError: another type or shape, NaN or infinity, or floats above 8 in magnitude.
    """
    try:
        samples = np.asarray(pcm)
    except ValueError as error:
        raise AudioFormatError(f"audio samples are not an array: {error}", expected="[n] or [n, channels]") from error
    if samples.dtype not in (np.int16, np.float32, np.float64):
        raise AudioFormatError(
            f"audio samples of type {samples.dtype}",
            expected="int16, or float32 in -1..1",
            fix="convert first, e.g. (pcm32 >> 16).astype(np.int16) for int32",
        )
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= MAX_CHANNELS):
        raise AudioFormatError(
            f"audio samples of shape {list(samples.shape)}",
            expected=f"[n] or [n, channels] with 1..{MAX_CHANNELS} channels",
            fix="transpose the array if the channels come first",
        )
    columns = samples.reshape(-1, 1) if samples.ndim == 1 else samples
    if columns.dtype == np.int16:
        return columns.astype(np.float32) / np.float32(32768)
    peak = float(np.abs(columns).max(initial=0.0))  # NaN if any sample is NaN
    if not np.isfinite(peak):
        raise AudioFormatError("audio samples contain NaN or infinity", expected="finite numbers in -1..1")
    if peak > _MAX_FLOAT:
        raise AudioFormatError(
            f"float audio samples up to {peak:g}",
            expected="full scale -1..1",
            fix="they look like integers: divide 16-bit samples by 32768",
        )
    return columns.astype(np.float32, copy=False)


def is_bytes(pcm: object) -> TypeGuard[bytes | bytearray | memoryview]:
    """Whether `pcm` is a piece of a byte stream; a memoryview of int16 is an array."""
    return isinstance(pcm, bytes | bytearray) or (isinstance(pcm, memoryview) and pcm.itemsize == 1)


def split_pcm(data: bytes, channels: int) -> tuple[NDArray[np.int16], bytes]:
    """The whole samples of interleaved int16 little endian, [n, channels], and the bytes of one that is cut.

    Args:
        channels: 1 to 8.
    """
    whole = len(data) - len(data) % (2 * channels)
    return np.frombuffer(data[:whole], "<i2").astype(np.int16).reshape(-1, channels), data[whole:]


def check_channels(channels: object) -> int:
    """The number of channels, if it is a whole number in 1..8; else AudioFormatError."""
    if isinstance(channels, int | np.integer) and 1 <= channels <= MAX_CHANNELS:
        return int(channels)
    raise AudioFormatError(f"{channels!r} audio channels", expected=f"1..{MAX_CHANNELS}")


def check_rate(rate: object) -> int:
    """The sample rate as an int, if it is a whole number of Hz in 4000..384000; else AudioFormatError."""
    if isinstance(rate, int | np.integer) and MIN_RATE <= rate <= MAX_RATE:
        return int(rate)
    raise AudioFormatError(f"sample rate {rate!r}", expected=f"a whole number of Hz in {MIN_RATE}..{MAX_RATE}")


def _pick(container: InputContainer, path: Path, codecs: frozenset[str] | None) -> AudioStream:
    streams = container.streams.audio
    if not streams:
        raise NoAudioError(f"{path} holds no audio", fix="give a file with an audio track as the speech")
    known = [s for s in streams if s.codec_context is not None]
    if not known:
        raise MediaOpenError(
            f"{path}: no decoder for its sound", expected="a codec that this FFmpeg reads", fix="save it as WAV or AAC"
        )
    stream = next((s for s in known if s.disposition & Disposition.default), known[0])
    if codecs is not None and stream.codec_context.name not in codecs:
        raise MediaOpenError(
            f"{path} has sound encoded as {stream.codec_context.name}", expected="a common codec", fix="save it as WAV"
        )
    return stream


def _with_stated_length(frames: Iterator[av.AudioFrame]) -> Iterator[tuple[av.AudioFrame, int]]:
    """Yield frames with their number of valid samples: all, but fewer in the last frame if the file states so.

    MP4 gives the last packet the remaining duration of the track, but FFmpeg does not cut the codec's padding by it.
    Only the last frame is cut: time stamps of phone recordings jitter, and no speech must be lost.
    """
    held: av.AudioFrame | None = None
    for frame in frames:
        if held is not None:
            yield held, held.samples
        held = frame
    if held is not None:
        exact = held.time_base == Fraction(1, held.sample_rate) and 0 < held.duration < held.samples
        yield held, held.duration if exact else held.samples
