"""Runs an iterator in a thread of its own, a few items ahead of its consumer."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

from .errors import SessionClosedError

T = TypeVar("T")


class Ahead(Generic[T]):
    """An iterator over `items`, which are produced in a thread, at most `size` ahead. Order and errors stay the same.

    Close it, or use it in a ``with`` block: the thread then ends with the item that it is producing, and is joined. It
    also ends when this object is collected, and at the end of the process, where a consumer in another thread gets
    SessionClosedError, so that it does not take what it has for the whole. `items` must not refer to this object.

    Args:
        size: number of items; 0 produces each one when it is asked for, without a thread.
    """

    def __init__(self, items: Iterator[T], size: int) -> None:
        self._items = items
        self._queue: _Queue[T] | None = None
        if size:
            self._queue = queue = _Queue(items, size)
            self._close = weakref.finalize(self, queue.close)

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        return next(self._items) if self._queue is None else self._queue.take()

    def close(self) -> None:
        """End the thread, and iteration; a call that waits raises SessionClosedError. May be called again."""
        self._items, queue, self._queue = iter(()), self._queue, None
        if queue is not None:
            self._close()

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Queue(Generic[T]):
    """The thread, and what it has produced. It does not refer to `Ahead`, so that that can be collected."""

    def __init__(self, items: Iterator[T], size: int) -> None:
        self._items, self._size = items, size
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = self._finished = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._produce, name="lipstream-stage", daemon=True)
        self._thread.start()

    def take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._finished or self._closed)
            if self._closed:
                raise SessionClosedError("what is being read was closed", fix="read to the end before closing")
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _produce(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._ready) < self._size or self._closed)
                    if self._closed:
                        return
                del item
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()
