"""The process that decodes an untrusted file for the readers of `sandbox`: limited, then fed one file, then ended.

It sends, over one connection: "started"; "opened" with the file's properties; for each frame "frame" with its flags,
and then its planes, or for each block of sound "block", and then its samples; "done"; or "error". Texts are JSON:
nothing that comes out of this process is unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import struct
import sys
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..errors import LipStreamError, MediaOpenError
from .audio import AudioReader
from .reader import VideoReader
from .threads import limit_threads

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

CODECS = frozenset(
    {
        *("av1", "h263", "h264", "hevc", "libdav1d", "libvpx", "libvpx-vp9", "mpeg1video", "mpeg2video", "mpeg4"),
        *("ffv1", "prores", "qtrle", "rawvideo", "theora", "vc1", "vp8", "vp9", "wmv2", "wmv3"),
        *("bmp", "gif", "mjpeg", "png", "tiff", "webp"),
    }
)
"""Decoders that run: those of files that cameras, phones, browsers and editors write."""
SOUND = frozenset(
    {
        *("aac", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac", "amrnb", "amrwb", "eac3", "flac"),
        *("libopus", "libvorbis", "mp2", "mp2float", "mp3", "mp3float", "opus", "vorbis", "wmav2"),
        *("pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"),
        *("pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
    }
)
"""The same of sound."""


MOST_SAMPLES = 1 << 16
"""Of each channel, sent at once."""


@dataclass(frozen=True)
class Limits:
    """Limits of the process.

    Attributes:
        memory: bytes of address space. cpu: seconds of all threads. pixels: of a frame. nice: added to its niceness.
    """

    memory: int = 3 << 30
    cpu: int = 120
    pixels: int = 4096 * 2304
    nice: int = 0


def decode(connection: Connection, path: str, limits: Limits, *, sound: bool, opencv: bool) -> None:
    """The process's whole work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it, too; its parent ends it
    _say(connection, "started")
    _restrict(limits)
    limit_threads(2)
    try:
        if sound:
            _send_sound(connection, path)
        else:
            _send_pictures(connection, path, opencv, limits)
    except LipStreamError as error:
        _say(connection, "error", code=error.code, found=error.found, expected=error.expected, fix=error.fix)
    except (BrokenPipeError, ConnectionResetError):
        pass  # no more frames are wanted
    except Exception as error:  # of any class: the file is not trusted, and the caller gets one of ours
        found = f"{path} cannot be decoded within the limits: {type(error).__name__}"
        _say(
            connection, "error", code=MediaOpenError.code, found=found, expected="an ordinary video or picture", fix=""
        )
    finally:
        connection.close()


def _send_pictures(connection: Connection, path: str, opencv: bool, limits: Limits) -> None:
    reader = VideoReader(path, opencv=opencv, codecs=CODECS, most_pixels=limits.pixels)
    _say(connection, "opened", info=_properties(reader))
    for index, picture in enumerate(reader.pictures()):
        _say(connection, "frame", damaged=reader.damaged(index), interlaced=reader.interlaced)
        connection.send_bytes(b"".join(plane.tobytes() for plane in picture.planes))
    _say(connection, "done", defects=reader.defects)


def _send_sound(connection: Connection, path: str) -> None:
    reader = AudioReader(path, codecs=SOUND)
    _say(connection, "opened", info=asdict(reader.info))
    for block in reader:
        for start in range(0, len(block), MOST_SAMPLES):
            _say(connection, "block")
            connection.send_bytes(block[start : start + MOST_SAMPLES].tobytes())
    _say(connection, "done")


def _say(connection: Connection, kind: str, **fields: Any) -> None:
    connection.send_bytes(json.dumps({"kind": kind, **fields}).encode())


def _properties(reader: VideoReader) -> dict[str, Any]:
    info = reader.info
    return {
        "fps": str(info.fps) if info.fps is not None else None,
        "duration": info.duration,
        "start_time": info.start_time,
        "sample_aspect_ratio": str(info.sample_aspect_ratio),
        "format": asdict(info.format),
        "hdr": info.hdr.to_json() if info.hdr is not None else None,
    }


def _restrict(limits: Limits) -> None:
    """Take from this process what decoding does not need."""
    if resource is not None:
        for kind, most in (
            (resource.RLIMIT_AS, limits.memory),
            (resource.RLIMIT_CPU, limits.cpu),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0),
        ):
            _, hard = resource.getrlimit(kind)
            wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(ValueError, OSError):  # macOS has no limit of address space
                resource.setrlimit(kind, (wanted, wanted))
    if sys.platform != "win32":
        os.nice(limits.nice)
    if sys.platform == "linux":
        _forbid_calls()


@dataclass(frozen=True)
class _Calls:
    """System calls of a machine. Attributes: number: of the machine. refused. opening: open's, or -1, and openat's."""

    number: int
    refused: tuple[int, ...]
    opening: tuple[int, int]


# Network: socket, connect, bind; programs: execve, execveat; other processes: kill, tkill, tgkill, rt_sigqueueinfo,
# rt_tgsigqueueinfo, ptrace, process_vm_readv, process_vm_writev, pidfd_send_signal, pidfd_getfd; io_uring, which makes
# calls beside the filter; names of files: unlink, rename, link, symlink, mkdir, rmdir, truncate, creat, openat2.
_CALLS = {
    "x86_64": _Calls(
        0xC000003E,
        (
            *(41, 42, 49, 59, 322, 62, 200, 234, 129, 297, 101, 310, 311, 424, 438, 425, 426, 427),
            *(87, 263, 82, 264, 316, 86, 265, 88, 266, 83, 258, 84, 76, 85, 437),
        ),
        (2, 257),
    ),
    "aarch64": _Calls(
        0xC00000B7,
        (
            *(198, 203, 200, 221, 281, 129, 130, 131, 138, 240, 117, 270, 271, 424, 438, 425, 426, 427),
            *(35, 38, 276, 37, 36, 34, 45, 437),
        ),
        (-1, 56),
    ),
}
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _ANY_BIT, _FROM, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # instructions of BPF
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # and return EPERM
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets of what a filter sees
_X32 = 0x40000000  # the same calls once more, by other numbers
_WRITING = 0o1103  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC


def _forbid_calls() -> None:
    """Refuse network, other programs and processes, and changes of files by seccomp, where the kernel has it."""
    machine = platform.machine()
    if machine not in _CALLS:
        return
    calls = _CALLS[machine]
    refuse, allow = (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)
    program = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, calls.number), refuse, (_LOAD, 0, 0, _NUMBER)]
    program += [(_FROM, 0, 1, _X32), refuse]
    for call in calls.refused:
        program += [(_EQUAL, 0, 1, call), refuse]
    for call, argument in zip(calls.opening, (1, 2), strict=True):  # the flags are its second or third argument
        if call >= 0:
            flags = (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
            program += [(_EQUAL, 0, 4, call), flags, (_ANY_BIT, 0, 1, _WRITING), refuse, allow]
    program.append(allow)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    given = Program(len(program), ctypes.addressof(code))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        libc.prctl(_SECCOMP, _FILTER, ctypes.byref(given), 0, 0)
