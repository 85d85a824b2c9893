"""The process that decodes an untrusted file for `sandbox.SandboxedReader`: limited, then fed one file, then ended.

It sends, over one connection: "opened" with the video's properties; for each frame "frame" with its flags, and then its
planes; "done"; or "error". Texts are JSON: nothing that comes out of this process is unpickled.
"""

from __future__ import annotations

import ctypes
import json
import platform
import struct
import sys
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..errors import LipStreamError, MediaOpenError
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


@dataclass(frozen=True)
class Limits:
    """Attributes: memory: bytes of address space. cpu: seconds of all threads. pixels: of a frame."""

    memory: int = 3 << 30
    cpu: int = 120
    pixels: int = 4096 * 2304


def decode(connection: Connection, path: str, retimed: bool, limits: Limits) -> None:
    """The process's whole work."""
    _restrict(limits)
    limit_threads(2)
    try:
        reader = VideoReader(path, retimed=retimed, codecs=CODECS, most_pixels=limits.pixels)
        _say(connection, "opened", info=_properties(reader))
        for index, picture in enumerate(reader.pictures()):
            _say(connection, "frame", damaged=reader.damaged(index), interlaced=reader.interlaced)
            connection.send_bytes(b"".join(plane.tobytes() for plane in picture.planes))
        _say(connection, "done", defects=reader.defects)
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
            resource.setrlimit(kind, (wanted, wanted))
    if sys.platform == "linux":
        _forbid_calls()


# Numbers of the system calls: socket, connect, bind, execve, execveat, ptrace, kill.
_CALLS = {
    "x86_64": (0xC000003E, (41, 42, 49, 59, 322, 101, 62)),
    "aarch64": (0xC00000B7, (198, 203, 200, 221, 281, 117, 129)),
}
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # instructions of BPF
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # and return EPERM


def _forbid_calls() -> None:
    """Refuse network, other programs and signals to them by seccomp, where the kernel has it."""
    machine = platform.machine()
    if machine not in _CALLS:
        return
    architecture, calls = _CALLS[machine]
    count = len(calls)
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, 0)]
    program += [(_EQUAL, count - i, 0, call) for i, call in enumerate(calls)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    given = Program(len(program), ctypes.addressof(code))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        libc.prctl(_SECCOMP, _FILTER, ctypes.byref(given), 0, 0)
