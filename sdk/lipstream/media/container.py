"""Opens and decodes media files; every failure is one of LipStream's errors."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from ..errors import MediaOpenError, MediaTruncatedError

PathLike = str | os.PathLike[str]

FORMATS = (
    # video with sound
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg"),
    *("mxf", "nut", "ivf", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "yuv4mpegpipe", "dv", "gif", "apng", "obu"),
    # sound
    *("wav", "mp3", "flac", "aac", "ac3", "eac3", "aiff", "au", "caf", "w64", "amr", "amrnb", "amrwb", "ape", "wv"),
    *("tta", "tak", "opus", "gsm"),
    # pictures, one a file
    *("image2", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "jpegxl_pipe", "jpegxl_anim"),
    *("ppm_pipe", "pgm_pipe", "pbm_pipe", "pam_pipe", "dpx_pipe", "exr_pipe", "qoi_pipe", "gif_pipe", "jpegls_pipe"),
    *(
        "j2k_pipe",
        "sgi_pipe",
        "sunrast_pipe",
        "pcx_pipe",
        "psd_pipe",
        "dds_pipe",
        "hdr_pipe",
        "pgmyuv_pipe",
        "phm_pipe",
    ),
)
"""Allowed FFmpeg demuxers: those that read one file and no file that it refers to. Playlists (HLS, DASH, concat, IMF)
and scripts (Vapoursynth, AviSynth) refer to other files, text formats render any text as pictures."""
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(FORMATS),
    # References from one QuickTime file to another are not followed.
    "enable_drefs": "0",
    "use_absolute_path": "0",
    # "%03d" in the name of a picture is not a pattern.
    "pattern_type": "none",
}
# Containers whose header states the length. Elsewhere (MPEG-TS, MP3, raw streams) FFmpeg estimates it.
_LENGTH_IN_HEADER = ("mov", "matroska", "flac")
_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT: the format allows its clock to be reset
MAX_STEP = 10
"""Seconds; a larger step in a format with clock resets is a reset, as in FFmpeg's dts_delta_threshold."""
# WAV writers that cannot seek back leave a data size in this range: 0x7ffff000 (SoX) .. 0xffffffff (FFmpeg).
_WAV_SIZE_UNKNOWN = 0x7FFFF000


def open_input(path: PathLike) -> InputContainer:
    """Open a regular file for reading; only local files are opened, whatever the file refers to.

    Raises:
        MediaOpenError: the path is missing, not a regular file, unreadable, or not media.
    """
    path = Path(path)
    address = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path))  # pathlib has joined the slashes
    if address and not path.exists():
        scheme, rest = address.groups()
        raise MediaOpenError(
            f"{scheme}://{rest} is an address", expected="a file on this machine", fix="download it first"
        )
    try:
        if not path.exists():
            raise MediaOpenError(f"no such file: {path}", fix="check the path")
        if not path.is_file():
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise MediaOpenError(f"{path} is {kind}", expected="a video, audio or image file")
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is too long, a null byte
        raise MediaOpenError(f"{str(path)[:200]!r} cannot be opened: {error}", fix="check the path") from error
    try:
        # "file:" keeps a colon in a name from being read as a protocol.
        container = av.open(f"file:{path.absolute()}", options=dict(_OPTIONS), metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        # FFmpeg's answer to a format that is not in the list, of whose options none is invalid.
        reason = "a format that is not opened" if isinstance(error, av.ArgumentError) else _reason(error)
        raise MediaOpenError(
            f"{path} cannot be read as media: {reason}",
            expected="a video, audio or image file that FFmpeg can decode",
            fix="check that the file is complete and that its suffix matches its format",
        ) from error
    return container


def decode(container: InputContainer, stream: VideoStream | AudioStream, path: PathLike) -> Iterator[Any]:
    """Yield the decoded frames of one stream (`av.VideoFrame` or `av.AudioFrame`) in presentation order.

    Damage before the first good frame is skipped, as in a broadcast joined midway. Damage between good frames, and a
    stream that ends well before the header's own length, is an error; damage after the full length is ignored.

    Raises:
        MediaOpenError: no decoder for this codec.
        MediaTruncatedError: see above, raised after the frames before the damage were yielded.
    """
    if stream.codec_context is None:
        raise MediaOpenError(f"{path}: the codec of stream {stream.index} is unknown to this FFmpeg")
    promised = _promised_end(container, stream, Path(path))
    end = Fraction(0)
    damage: av.FFmpegError | None = None
    started = False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            damage, packet = error, None
        if packet is None:
            break
        try:
            frames: list[Any] = list(packet.decode())
        except av.FFmpegError as error:
            damage = damage or error
            continue
        draining = not packet.size  # the last frames are those that the decoder held back, from before any damage
        for frame in frames:
            if damage and started and not draining:
                raise _truncated(path, f"is damaged at {float(end):.2f} s: {_reason(damage)}") from damage
            started, damage = True, damage if draining else None
            start = end if frame.pts is None else frame.pts * frame.time_base
            end = max(end, start + frame_duration(frame, stream))
            yield frame
    if promised is not None and end < promised - max(Fraction(3, 10), promised / 100):
        raise _truncated(path, f"ends at {float(end):.2f} s, its header says {float(promised):.2f} s") from damage
    if damage and promised is None and not _near_estimated_end(container, end):
        raise _truncated(path, f"breaks off at {float(end):.2f} s: {_reason(damage)}") from damage


def frame_duration(frame: Any, stream: VideoStream | AudioStream) -> Fraction:
    """Seconds that a decoded frame lasts: by its samples, its duration, or the stream's rate; else 1/25."""
    if isinstance(frame, av.AudioFrame):
        return Fraction(frame.samples, frame.sample_rate)
    if frame.duration and frame.time_base:
        return Fraction(frame.duration * frame.time_base)
    rate = stream.guessed_rate or stream.average_rate
    return 1 / Fraction(rate) if rate else Fraction(1, 25)


def stream_duration(container: InputContainer, stream: VideoStream | AudioStream) -> Fraction | None:
    """Duration of the stream in seconds, as FFmpeg knows it without decoding; None if unknown."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)\s*", stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = tag.groups()
        return (int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)) or None
    return Fraction(container.duration, av.time_base) if container.duration else None


def start_of(container: InputContainer) -> float:
    """Time stamp of the file's start, that of its earliest stream, in seconds."""
    return (container.start_time or 0) / av.time_base


def may_reset(container: InputContainer) -> bool:
    """Whether the format allows its clock to be reset midway."""
    return bool(container.format.flags & _TS_DISCONT)


def _promised_end(container: InputContainer, stream: VideoStream | AudioStream, path: Path) -> Fraction | None:
    """End of the stream according to the header, in seconds on the file's clock; None if not stated."""
    if container.format.name == "wav":
        return _wav_end(path)
    if not container.format.name.startswith(_LENGTH_IN_HEADER):
        return None
    alone = len(container.streams.video) + len(container.streams.audio) == 1
    if not stream.duration and "DURATION" not in stream.metadata and not alone:
        return None  # the container's own length is that of its longest stream
    duration = stream_duration(container, stream)
    if duration is None:
        return None
    if stream.duration and stream.start_time and stream.time_base:
        return duration + stream.start_time * stream.time_base
    return duration


def _wav_end(path: Path) -> Fraction | None:
    """Duration by the stated size of a WAV file's data chunk, which FFmpeg silently clips to the size of the file."""
    bytes_per_second = 0
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return None
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                known = bytes_per_second and length < _WAV_SIZE_UNKNOWN
                return Fraction(length, bytes_per_second) if known else None
            following = file.tell() + length + length % 2
            if name == b"fmt ":
                bytes_per_second = struct.unpack("<8xI", file.read(12).ljust(12, b"\0"))[0]
            file.seek(following)
    return None


def _near_estimated_end(container: InputContainer, end: Fraction) -> bool:
    return bool(container.duration) and end >= Fraction(container.duration or 0, av.time_base) * 9 / 10


def _truncated(path: PathLike, what: str) -> MediaTruncatedError:
    return MediaTruncatedError(f"{path} {what}", expected="a complete file", fix="copy or record the file again")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
