"""The end of the process: threads leave native code before the interpreter ends, which would abort in the midst of it.

A daemon thread that returns from C++ to an interpreter that has ended is killed there, and the C++ runtime answers with
`abort`. So at exit all sessions are closed, and threads inside `working` are waited for.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet, finalize

from .errors import SessionClosedError

PATIENCE = 60.0
"""Seconds after which the process ends in any case."""


class Closable(Protocol):
    def close(self) -> None: ...


class _Exit:
    """Attributes: inside: how many times each thread, by its ident, has entered `working`; open: to be closed."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.inside: Counter[int] = Counter()
        self.open: WeakSet[Closable] = WeakSet()
        self.begun = False


_exit = _Exit()


@contextmanager
def working() -> Iterator[None]:
    """The process does not end before this block does; also a decorator. Long work inside calls `check_running`.

    Raises:
        SessionClosedError: the process is ending.
    """
    state, thread = _exit, threading.get_ident()
    with state.changed:
        if thread not in state.inside:
            check_running()
        state.inside[thread] += 1
    try:
        yield
    finally:
        with state.changed:
            state.inside[thread] -= 1
            if not state.inside[thread]:
                del state.inside[thread]
                state.changed.notify_all()


def check_running() -> None:
    """Raise SessionClosedError if the process is ending."""
    if _exit.begun:
        raise SessionClosedError("the process is ending", fix="join your threads before the main thread ends")


def close_at_exit(thing: Closable) -> None:
    """Close `thing` at exit, if it still exists; raises SessionClosedError if the process is already ending."""
    with _exit.changed:
        check_running()
        _exit.open.add(thing)


def _end() -> None:
    with _exit.changed:
        _exit.begun = True
        things = list(_exit.open)
    for thing in things:
        thing.close()
    with _exit.changed:
        _exit.changed.wait_for(lambda: not _exit.inside.keys() - {threading.get_ident()}, PATIENCE)


# What is registered last runs first, and the first finalizer registers all of them: `_end` runs before any finalizer.
finalize(_exit, str)
atexit.register(_end)


def _forget() -> None:
    """In a forked process: the threads and sessions of the other one are not its own."""
    global _exit
    _exit = _Exit()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
