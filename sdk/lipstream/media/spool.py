"""Frames kept on disk: raw, of one size, read back in any order."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError

_KEEP_FREE = 256 << 20  # bytes; a full disk breaks other programs, too
_CHECK_EVERY = 64  # frames


class FrameSpool:
    """A temporary file of uint8 frames of one shape. Plain reads and writes keep one frame in memory at a time.

    The file has no name (on Windows: is deleted on close), so it disappears with the object or the process. Reading is
    thread-safe.

    Args:
        folder: of the file; the system's folder for temporary files by default.

    Raises:
        OutputError: the folder cannot be written to, or the disk fills up (from `append`).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir())
        self._shape: tuple[int, ...] = ()
        self._frames = 0
        self._one = threading.Lock()
        try:
            self._file = tempfile.TemporaryFile(prefix="lipstream-", dir=self.folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise OutputError(
                f"no temporary file can be created in {self.folder}: {error.strerror}",
                expected="a writable folder for the decoded frames of a looped source",
            ) from error

    def __len__(self) -> int:
        return self._frames

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame, uint8, of the same shape as the first."""
        self._shape = self._shape or frame.shape
        if frame.shape != self._shape:
            raise ValueError(f"frame of shape {frame.shape} in a spool of {self._shape}")
        if self._frames % _CHECK_EVERY == 0 and shutil.disk_usage(self.folder).free < _KEEP_FREE:
            raise self._full("less than 256 MiB left")
        view = np.ascontiguousarray(frame).data.cast("B")
        try:
            self._file.seek(self._frames * frame.nbytes)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise self._full(str(error.strerror)) from error
        self._frames += 1

    def read(self, index: int) -> NDArray[np.uint8]:
        """Read frame `index`, 0 <= index < len, into a new array."""
        if not 0 <= index < self._frames:
            raise IndexError(f"frame {index} of {self._frames}")
        frame = np.empty(self._shape, np.uint8)
        view = frame.data.cast("B")
        with self._one:
            self._file.seek(index * frame.nbytes)
            while view:
                count = self._file.readinto(view)
                if not count:
                    raise self._full("the temporary file was cut short")
                view = view[count:]
        return frame

    def close(self) -> None:
        """Delete the file. May be called again."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _full(self, why: str) -> OutputError:
        return OutputError(
            f"frames cannot be kept in {self.folder}: {why}",
            expected="space for the decoded frames of a looped source (6 MB each at 1080p)",
            fix="loop a shorter video, or choose another folder (spool_dir, or the environment variable TMPDIR)",
        )
