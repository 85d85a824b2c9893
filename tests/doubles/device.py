"""A simulated device that runs work as late as allowed and in any allowed order, as a real device may.

Memory: addresses that the host cannot dereference. Streams: queues; their work runs when the host waits for it, other
work may run before or after. Of the operations that are free to run, one is chosen at random. Engines and copies take
time: they read when they begin, and their inputs must be unchanged when they end; their outputs are garbage in between.
So a missing event, or a buffer with two uses, gives wrong pictures and is recorded in `hazards`. Work also has a
duration, which determines when it would run on real lanes (`Operation.end`).
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class DeviceError(Exception):
    """A call that CUDA would reject. Attributes: status: CUDA's name of the error."""

    def __init__(self, status: str, why: str) -> None:
        self.status = status
        super().__init__(f"{status}: {why}")


def nothing() -> None:
    """An operation that only orders others."""


@dataclass(eq=False)
class Work:
    """What one operation does. `begin` returns what `finish` needs."""

    name: str
    begin: Callable[[], Any]
    finish: Callable[[Any], None]
    duration: float = 0.0
    still_valid: Callable[[], bool] = lambda: True


@dataclass(eq=False)
class Operation:
    """Work on a stream. Attributes: start, end: in milliseconds, on real lanes."""

    work: Work
    stream: int
    after: list[Operation]
    queued: float
    begun: bool = False
    done: bool = False
    kept: Any = None
    start: float = 0.0
    end: float = 0.0

    def ready(self) -> bool:
        return not self.done and all(operation.done for operation in self.after)


@dataclass(eq=False)
class Stream:
    handle: int
    last: Operation | None = None
    waits: list[Operation] = field(default_factory=list)
    capturing: list[Work] | None = None
    thread: int = 0
    broken: str = ""


@dataclass(eq=False)
class Event:
    timing: bool
    operation: Operation | None = None


@dataclass(eq=False)
class Graph:
    work: list[Work]


class Device:
    """See the module. Everything it does depends on `seed` alone.

    Args:
        limit: bytes of its memory.

    Attributes:
        counts: of calls: allocations, contexts, captures, runs, graphs, host waits, copies by kind. hazards: conflicts
            found.
        now: of the host's clock, in milliseconds; only waiting moves it.
    """

    BASE = 0x7A00_0000_0000

    def __init__(self, seed: int = 0, *, limit: int = 1 << 40) -> None:
        self.random = random.Random(seed)
        # How often work runs without a wait for it: from "never" to "at once".
        self.eager = self.random.choice([0.0, 0.1, 0.5, 0.9])
        self.limit, self.used = limit, 0
        self.memory: dict[int, Bytes] = {}
        self.pinned: dict[int, Bytes] = {}
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, Graph] = {}
        self.pending: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self.hazards: list[str] = []
        self.now = 0.0
        self._pace: dict[int, float] = {}
        self._handles = 1
        self._next = self.BASE
        self._lock = threading.RLock()

    # memory

    def allocate(self, size: int) -> int:
        with self._lock:
            self.forbid_in_capture("an allocation")
            self.counts["allocations"] += 1
            if self.used + size > self.limit:
                raise DeviceError("cudaErrorMemoryAllocation", f"{size} bytes")
            address, self.used = self._next, self.used + size
            self._next += -(-size // 4096) * 4096 + 4096  # a hole behind every piece
            self.memory[address] = np.frombuffer(self.random.randbytes(size), np.uint8).copy()
            return address

    def free(self, address: int) -> None:
        with self._lock:
            self.forbid_in_capture("freeing")
            self.run_all()
            self.used -= len(self.memory.pop(address))

    def is_device(self, address: int) -> bool:
        return self.BASE <= address < self._next

    def view(self, address: int, size: int) -> Bytes:
        """The device's memory there, for operations while they run."""
        for start, memory in self.memory.items():
            if start <= address and address + size <= start + len(memory):
                return memory[address - start : address - start + size]
        raise DeviceError("cudaErrorIllegalAddress", f"{size} bytes at {address:#x}")

    # streams, events, graphs

    def add(self, kind: dict[int, Any], thing: Any) -> int:
        with self._lock:
            self._handles += 16
            kind[self._handles] = thing
            return self._handles

    def new_stream(self) -> int:
        stream = Stream(0)
        stream.handle = self.add(self.streams, stream)
        return stream.handle

    def put(self, stream: int, work: Work) -> Operation | None:
        with self._lock:
            on = self.streams[stream]  # KeyError: the default stream is not ours to use
            if on.capturing is not None:
                on.capturing.append(work)
                return None
            operation = Operation(work, stream, [*([on.last] if on.last else []), *on.waits], self.now)
            on.last, on.waits = operation, []
            self.pending.append(operation)
            while self.random.random() < self.eager:
                if not self._run_one(self.pending):
                    break
            return operation

    def record(self, event: Event, stream: int) -> None:
        with self._lock:
            if self.streams[stream].capturing is not None:
                raise DeviceError("cudaErrorStreamCaptureUnsupported", "an event recorded while capturing")
            event.operation = self.put(stream, Work("event", nothing, lambda kept: None))

    def wait(self, stream: int, event: Event) -> None:
        with self._lock:
            if self.streams[stream].capturing is not None:
                raise DeviceError("cudaErrorStreamCaptureIsolation", "waiting for what is not captured")
            if event.operation is not None:
                self.streams[stream].waits.append(event.operation)

    def begin_capture(self, stream: int) -> None:
        with self._lock:
            on = self.streams[stream]
            self.counts["captures"] += 1
            on.capturing, on.thread, on.broken = [], threading.get_ident(), ""

    def end_capture(self, stream: int) -> int:
        with self._lock:
            on = self.streams[stream]
            captured, on.capturing = on.capturing, None
            if on.broken or captured is None:
                raise DeviceError("cudaErrorStreamCaptureInvalidated", on.broken)
            return self.add(self.graphs, Graph(captured))

    def launch(self, graph: Graph, stream: int) -> None:
        with self._lock:
            if not all(work.still_valid() for work in graph.work):
                raise DeviceError("cudaErrorInvalidValue", "a graph of addresses or shapes that are not so any more")
            self.counts["graphs"] += 1
            for work in graph.work:
                self.put(stream, work)

    def forbid_in_capture(self, what: str) -> None:
        for stream in self.streams.values():
            if stream.capturing is not None and stream.thread == threading.get_ident():
                stream.broken = f"{what} while capturing"
                raise DeviceError("cudaErrorStreamCaptureUnsupported", stream.broken)

    # running

    def synchronize(self, target: Operation | None) -> None:
        """Let the host wait for an operation."""
        with self._lock:
            self.forbid_in_capture("waiting")
            self.counts["waits"] += 1
            if target is None:
                return
            if self.random.random() < self.eager:
                self._run_without(self.random.choice([*self.streams]))
            needed = self._needed([target])
            while not target.done:
                others = self.random.random() < self.eager
                if not (others and self._run_one(self.pending)) and not self._run_one(needed):
                    raise AssertionError("a stream waits for itself")
            self.now = max(self.now, target.end)

    def run_all(self) -> None:
        with self._lock:
            while self._run_one(self.pending):
                pass

    def _needed(self, targets: Iterable[Operation]) -> list[Operation]:
        found: dict[int, Operation] = {}
        waiting = list(targets)
        while waiting:
            operation = waiting.pop()
            if not operation.done and id(operation) not in found:
                found[id(operation)] = operation
                waiting += operation.after
        return list(found.values())

    def _run_one(self, among: list[Operation]) -> bool:
        """Begin or end one operation that may run."""
        ready = [operation for operation in among if operation.ready()]
        if not ready:
            return False
        operation = self._choose(ready)
        if not operation.begun:
            operation.start = max([operation.queued, *(before.end for before in operation.after)])
            operation.end = operation.start + operation.work.duration
            operation.begun, operation.kept = True, operation.work.begin()
        else:
            operation.work.finish(operation.kept)
            operation.done, operation.kept, operation.after = True, None, []
            self.pending = [other for other in self.pending if not other.done]
        return True

    def _run_without(self, stream: int) -> None:
        """Run all operations that can run while one stream is blocked."""
        while self._run_one([operation for operation in self.pending if operation.stream != stream]):
            pass

    def _choose(self, ready: list[Operation]) -> Operation:
        """At random, but some streams are far ahead of others for a while."""
        if self.random.random() < 0.02:
            self._pace.clear()
        for operation in ready:
            self._pace.setdefault(operation.stream, 10 ** self.random.uniform(-3, 3))
        return self.random.choices(ready, [self._pace[operation.stream] for operation in ready])[0]

    # what takes time

    def copy(self, to: Callable[[], Bytes], source: Callable[[], Bytes], duration: float, name: str) -> Work:
        """A copy: the first half is copied when it begins, the second when it ends."""

        def begin() -> None:
            half = len(source()) // 2
            to()[:half] = source()[:half]

        def finish(_: Any) -> None:
            half = len(source()) // 2
            to()[half:] = source()[half:]

        return Work(name, begin, finish, duration)

    def computation(
        self,
        name: str,
        reads: Callable[[], dict[str, Bytes]],
        writes: Callable[[], dict[str, Bytes]],
        compute: Callable[[dict[str, Bytes]], dict[str, np.ndarray[Any, Any]]],
        duration: float = 0.0,
        in_place: frozenset[str] = frozenset(),
        still_valid: Callable[[], bool] = lambda: True,
    ) -> Work:
        """Work that reads some tensors and writes others. `in_place`: written over something that it reads."""

        def begin() -> dict[str, Bytes]:
            for key, memory in writes().items():
                if key not in in_place:
                    memory[:] = 0xFF  # NaN
            return {key: memory.copy() for key, memory in reads().items()}

        def finish(given: dict[str, Bytes]) -> None:
            changed = [key for key, memory in reads().items() if not np.array_equal(memory, given[key])]
            torn = [key for key, memory in writes().items() if key not in in_place and not (memory == 0xFF).all()]
            if changed or torn:
                self.hazards.append(f"{name}: {', '.join([*changed, *torn])} written by others while it ran")
            result = compute(given)
            for key, memory in writes().items():
                memory[:] = 0xFF if changed or torn else np.ascontiguousarray(result[key]).reshape(-1).view(np.uint8)

        return Work(name, begin, finish, duration, still_valid)
