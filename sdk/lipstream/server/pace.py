"""How much of the event loop the messages of one client may take, so that others are served meanwhile.

Measured is the thread's own time: waiting for other threads, which generate, is not the client's doing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = 0.1
"""Of the loop's time, on average."""
AT_ONCE = 0.25
"""Seconds of it that a client may take at once, after a pause."""


class Pace:
    """Measures what handling a client's messages takes, and delays reading further ones."""

    def __init__(self) -> None:
        self._debt, self._since = 0.0, time.monotonic()

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Measure what is done inside, for one message."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self._debt += time.thread_time() - begun

    async def wait(self) -> None:
        """Wait until the next message may be read; at least others get their turn."""
        now = time.monotonic()
        self._debt, self._since = max(0.0, self._debt - SHARE * (now - self._since)), now
        await asyncio.sleep(max(0.0, self._debt - AT_ONCE) / SHARE)
