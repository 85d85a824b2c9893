"""Files and folders that are being written: hidden, locked by their writer, removed if the writer was killed.

A result is written under a hidden name in the folder of its target and renamed when it is complete. The lock shows
that its writer is alive, also across containers that share the folder, where process ids cannot be compared. The next
writer with the same target removes partial results without a lock. Where there are no such locks (Windows), nothing is
removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import OutputError

try:
    import fcntl

    LOCKS = True
except ImportError:  # Windows
    LOCKS = False

_LONGEST_NAME = 255  # bytes
SUFFIX = ".part"
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


class Partial:
    """A new hidden file or folder beside `target`, locked until `release` or the end of the process.

    Attributes:
        path: its name, ``.<name of target>.<random>.part``. target: as given.

    Raises:
        OSError: the folder of `target` cannot be written, or a file cannot get the name of `target`.
    """

    def __init__(self, target: Path, *, folder: bool = False) -> None:
        (check_length if folder else check_target)(target)  # now, not when the work is done
        self.target = target
        parent, stem = target.absolute().parent, _stem(target.name)
        sweep(parent, stem)
        while True:
            self.path = parent / f"{stem}{secrets.token_hex(4)}{SUFFIX}"
            if folder:
                self.path.mkdir()
            else:
                self.path.open("xb").close()
            self._lock = _locked(self.path, wait=True)
            if self._lock is not None:  # else another writer removed it before it was locked
                return

    def replace_target(self) -> None:
        """Rename it to `target`, with the permissions of a file that is there already. Raises OSError."""
        with contextlib.suppress(OSError):
            old = os.stat(self.target)
            if stat.S_ISREG(old.st_mode):
                self.path.chmod(stat.S_IMODE(old.st_mode))
        self.path.replace(self.target)

    def remove(self) -> None:
        """Delete it, if it still has its name, and release the lock. May be called again."""
        _remove(self.path)
        self.release()

    def release(self) -> None:
        """Release the lock; for results that have their final name. May be called again."""
        if self._lock is not None and self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


@contextlib.contextmanager
def exclusively(target: Path, seconds: float = 10.0) -> Iterator[None]:
    """Lock the folder of `target` against others that use this, to read a file and replace it by a changed one.

    Where there are no such locks, nothing is locked.

    Raises:
        OSError: another process holds it for so many `seconds`.
    """
    descriptor = os.open(target.absolute().parent, os.O_RDONLY) if LOCKS else -1
    try:
        end = time.monotonic() + seconds
        while descriptor >= 0:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                break
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def check_length(target: Path) -> None:
    """Raise OSError if the name of a file is longer than file systems allow."""
    if len(os.fsencode(target.name)) > _LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(target))


def check_target(target: Path) -> None:
    """Raise OSError if a file cannot get this name: it is too long, or that of a folder, a device or a pipe."""
    check_length(target)
    try:
        kind = target.stat().st_mode
    except (OSError, RuntimeError):  # there is none; RuntimeError: a loop of links
        return
    if stat.S_ISDIR(kind):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(kind):  # renaming a file to /dev/null would replace that for the whole system
        raise OSError(errno.EEXIST, "It is a device or a pipe", str(target))


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a hidden file beside `target`, renamed to `target` at the end of the block, removed if that raises.

    Raises:
        OSError: the folder of `target` cannot be written.
    """
    partial = Partial(target)
    try:
        yield partial.path
        partial.replace_target()
    finally:
        partial.remove()


def write_file(target: Path, data: bytes | memoryview, *, mode: int | None = None) -> None:
    """Write a file completely or not at all; one that is new gets `mode`, if that is given. Raises OSError."""
    with new_file(target) as path:
        if mode is not None:
            path.chmod(mode)
        path.write_bytes(data)


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, each completely or not at all, and none if one of them cannot be written.

    Raises:
        OutputError: that one, by name.
    """
    with contextlib.ExitStack() as stack:
        for target, data in contents.items():
            stack.enter_context(_written(target, data))


@contextlib.contextmanager
def _written(target: Path, data: bytes) -> Iterator[None]:
    """`new_file` with its content; its errors by name."""
    try:
        with new_file(target) as path:
            path.write_bytes(data)
            yield
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from error


def sweep(parent: Path, stem: str) -> None:
    """Remove the partial files and folders in `parent` whose names begin with `stem` and whose writers are dead."""
    if not LOCKS:
        return
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if _is_ours(entry, stem):
                path = Path(entry.path)
                lock = _locked(path, wait=False)
                if lock is not None:
                    _remove(path)
                    os.close(lock)


def _is_ours(entry: os.DirEntry[str], stem: str) -> bool:
    """Whether a name is one that `Partial` gives, and its file this user's: users have hidden files of their own."""
    named = re.fullmatch(re.escape(stem) + r"[0-9a-f]{8}" + re.escape(SUFFIX), entry.name)
    if not named or not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
        return False
    return entry.stat(follow_symlinks=False).st_uid == os.getuid()


def _stem(name: str) -> str:
    """Prefix of the name of a partial result; short enough for file systems that limit names to 255 bytes."""
    return f".{os.fsencode(name)[:180].decode(errors='ignore')}."


def _locked(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock on `path`; None if another process holds it or the file is gone.

    -1 where the file system has no locks and `wait`: nothing is removed there.
    """
    if not LOCKS:
        return -1
    try:
        # Neither a link nor, waiting for its other end, a pipe of that name.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        here, named = os.fstat(descriptor), os.stat(path)
        if (here.st_dev, here.st_ino) == (named.st_dev, named.st_ino):
            return descriptor
    except OSError as error:
        if error.errno in _NO_LOCKS and wait:
            os.close(descriptor)
            return -1
    os.close(descriptor)
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def replace_folder(new: Path, target: Path) -> None:
    """Rename the folder `new` to `target`; a folder of that name is replaced at once and then deleted.

    Linux and macOS exchange the two names in one step. Where the file system cannot do that, `target` is missing for
    the moment between two renames.

    Raises:
        OSError: it cannot be renamed; `new` and `target` are unchanged.
    """
    while True:
        try:
            new.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            _exchange(new, target)
        except FileNotFoundError:
            continue  # another writer was between its two renames
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            aside = new.with_name(new.name + ".old")
            try:
                target.rename(aside)
            except FileNotFoundError:
                continue
            new.rename(target)
            new = aside
        shutil.rmtree(new, ignore_errors=True)
        return


def _exchange(a: Path, b: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True) if sys.platform != "win32" else None
    if library is not None and hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    elif library is not None and hasattr(library, "renamex_np"):
        failed = library.renamex_np(os.fsencode(a), os.fsencode(b), _RENAME_SWAP)
    else:
        raise OSError(errno.ENOSYS, "folders cannot be exchanged here")
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(b))
