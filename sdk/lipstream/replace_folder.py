"""Give a finished folder its name in one step, whether or not another folder has that name now."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


def replace_folder(new: Path, target: Path) -> None:
    """Rename the folder `new` to `target`; a folder of that name is replaced at once and then deleted.

    Linux and macOS exchange the two names in one step. Where the file system cannot do that, `target` is missing for
    the moment between two renames.

    Raises:
        OSError: it cannot be renamed; `new` and `target` are as they were.
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
