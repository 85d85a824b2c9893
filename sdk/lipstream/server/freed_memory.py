"""Gives freed memory back to the system.

glibc keeps what threads have freed, in an arena for each of them: a server of many short sessions would grow to several
times what it needs.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from functools import cache

_DELAY = 2.0
"""Seconds, in which a session's threads end."""


class FreedMemory:
    """Memory that sessions leave behind."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def return_soon(self) -> None:
        """Give it back in two seconds, once for all calls until then. Needs a running event loop; does not wait."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY, self._return)

    def _return(self) -> None:
        self._timer = None
        if trim := _trim():
            asyncio.get_running_loop().run_in_executor(None, trim, 0)


@cache
def _trim() -> Callable[[int], object] | None:
    """glibc's malloc_trim; None where the C library is another one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
