"""An iterator in a thread: the same items and errors, bounded, and no thread left."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from lipstream.ahead import Ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lipstream-stage"]


@pytest.mark.parametrize("size", [0, 1, 3, 100])
def test_items_keep_their_order(size: int) -> None:
    with Ahead(iter(range(50)), size) as ahead:
        assert list(ahead) == list(range(50))
        assert next(ahead, None) is None
    assert threads() == []


@pytest.mark.parametrize("size", [0, 2])
def test_an_error_comes_after_the_items_before_it(size: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    with Ahead(items(), size) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        with pytest.raises(KeyError, match="third"):
            next(ahead)
        assert next(ahead, None) is None


def test_no_more_than_size_items_are_produced_ahead() -> None:
    produced: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for i in itertools.count():
            produced.append(i)
            if i >= 3:
                full.set()
            yield i

    with Ahead(items(), 3) as ahead:
        assert next(ahead) == 0
        assert full.wait(10)
        for i in range(1, 30):
            assert next(ahead) == i
            assert len(produced) <= i + 1 + 3 + 1  # the last one is being produced


def test_close_waits_for_the_item_that_is_being_produced() -> None:
    started, proceed, finished = threading.Event(), threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        started.set()
        proceed.wait(10)
        finished.set()
        yield 1

    ahead = Ahead(items(), 1)
    assert started.wait(10)
    threading.Timer(0.05, proceed.set).start()
    ahead.close()
    assert finished.is_set()
    assert threads() == []
    ahead.close()
    assert list(ahead) == []


def test_the_thread_ends_when_the_object_is_collected() -> None:
    ahead = Ahead(itertools.count(), 2)
    next(ahead)
    assert len(threads()) == 1
    del ahead
    gc.collect()
    assert threads() == []


def test_the_process_ends_while_the_thread_is_busy() -> None:
    code = (
        "import time\n"
        "from lipstream.ahead import Ahead\n"
        "def items():\n"
        "    while True:\n"
        "        time.sleep(0.05)\n"
        "        yield 1\n"
        "kept = Ahead(items(), 4)\n"
        "next(kept)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
