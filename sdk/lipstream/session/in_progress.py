"""How long chunks have been in progress. One that never returns, in native code, can only be ended with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_begun: dict[int, float] = {}


@contextmanager
def in_progress() -> Iterator[None]:
    """A thread generates a chunk inside."""
    thread = threading.get_ident()
    with _lock:
        _begun[thread] = time.monotonic()
    try:
        yield
    finally:
        with _lock:
            _begun.pop(thread, None)


def longest() -> float:
    """Seconds since the oldest chunk in progress, of any session of this process, began; 0 if there is none."""
    with _lock:
        return time.monotonic() - min(_begun.values()) if _begun else 0.0
