"""Pictures kept on disk: raw, of one format, read back in any order."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np

from ..errors import OutputError
from .av_frame import Plane, allocate
from .picture import Picture
from .pixel_format import PictureFormat

_KEEP_FREE = 256 << 20  # bytes; a full disk breaks other programs, too
_CHECK_EVERY = 64  # frames


class FrameSpool:
    """A temporary file of pictures of one format. Plain reads and writes keep one frame in memory at a time.

    The file has no name (on Windows: is deleted on close), so it disappears with the object or the process. Reading is
    thread-safe.

    Args:
        folder: of the file; the system's folder for temporary files by default.

    Raises:
        OutputError: the folder cannot be written to, or the disk fills up (from `append`).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir())
        self._format: PictureFormat | None = None
        self._size = 0  # bytes of a picture
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

    def append(self, picture: Picture) -> None:
        """Append a picture of the same format as the first."""
        self._format, self._size = self._format or picture.format, picture.nbytes
        if picture.format != self._format:
            raise ValueError(f"a picture of {picture.format} in a spool of {self._format}")
        if self._frames % _CHECK_EVERY == 0 and shutil.disk_usage(self.folder).free < _KEEP_FREE:
            raise self._full("less than 256 MiB left")
        try:
            self._file.seek(self._frames * self._size)
            for plane in picture.planes:
                view = memoryview(plane.tobytes())
                while view:
                    view = view[self._file.write(view) :]
        except OSError as error:
            raise self._full(str(error.strerror)) from error
        self._frames += 1

    def read(self, index: int) -> Picture:
        """Read picture `index`, 0 <= index < len."""
        if not 0 <= index < self._frames:
            raise IndexError(f"frame {index} of {self._frames}")
        assert self._format is not None
        frame, planes = allocate(self._format)
        with self._one:
            self._file.seek(index * self._size)
            for plane in planes:
                plane[...] = self._read(plane)
        return Picture(frame, self._format)

    def _read(self, like: Plane) -> Plane:
        samples: Plane = np.empty(like.shape, like.dtype)
        view = samples.data.cast("B")
        while view:
            count = self._file.readinto(view)
            if not count:
                raise self._full("the temporary file was cut short")
            view = view[count:]
        return samples

    def close(self) -> None:
        """Delete the file. May be called again."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _full(self, why: str) -> OutputError:
        return OutputError(
            f"frames cannot be kept in {self.folder}: {why}",
            expected="space for the decoded frames of a looped source (3 MB each at 1080p)",
            fix="loop a shorter video, or choose another folder (spool_dir, or the environment variable TMPDIR)",
        )
