"""Traces of device work: NVTX ranges for NVIDIA's profilers, and a timeline for Chrome's and Perfetto's viewers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ...atomic import write_file


class TimedEvent(Protocol):
    """An event of a lane with a time stamp."""

    def wait(self) -> None:
        """Wait until it is reached."""

    def since(self, earlier: Any) -> float:
        """Milliseconds since `earlier`, another event."""


class Trace:
    """Spans of the lanes, timed by events on the device. Keeps all of them: use it for a few chunks.

    Args:
        nvtx: the module, to name the same spans for profilers, or None.
    """

    def __init__(self, nvtx: Any = None) -> None:
        self._nvtx = nvtx
        self._spans: list[tuple[str, str, TimedEvent, TimedEvent]] = []

    @contextmanager
    def range(self, lane: str, name: str) -> Iterator[None]:
        """Name the host's work inside, for profilers."""
        if self._nvtx:
            self._nvtx.push_range(f"{lane}: {name}")
        yield
        if self._nvtx:
            self._nvtx.pop_range()

    def add(self, lane: str, name: str, begin: TimedEvent, end: TimedEvent) -> None:
        self._spans.append((lane, name, begin, end))

    def spans(self) -> list[tuple[str, str, float, float]]:
        """(lane, name, begin, end) in milliseconds since the first began; waits for all of them."""
        for *_, end in self._spans:
            end.wait()
        return [
            (lane, name, begin.since(self._spans[0][2]), end.since(self._spans[0][2]))
            for lane, name, begin, end in self._spans
        ]

    def write(self, path: Path) -> None:
        """As Chrome's trace events (chrome://tracing, ui.perfetto.dev): one row for each lane."""
        events = [
            {"ph": "X", "pid": "GPU", "tid": lane, "name": name, "ts": 1e3 * begin, "dur": 1e3 * (end - begin)}
            for lane, name, begin, end in self.spans()
        ]
        write_file(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
