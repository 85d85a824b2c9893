"""What the device did when: NVTX ranges for NVIDIA's profilers, and a timeline for Chrome's and Perfetto's viewers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...atomic import write_file

if TYPE_CHECKING:
    from .cuda import Cuda, Event, Lane


class Trace:
    """Spans of the lanes, timed by events on the device. For looking at a few chunks: it keeps all of them.

    Args:
        nvtx: the module, to name the same spans for profilers, or None.
    """

    def __init__(self, cuda: Cuda, nvtx: Any = None) -> None:
        self._cuda, self._nvtx = cuda, nvtx
        self._start: Event | None = None
        self._spans: list[tuple[str, str, Event, Event]] = []

    @contextmanager
    def span(self, lane: Lane, name: str) -> Iterator[None]:
        begin, end = self._event(lane), self._event()
        if self._start is None:
            self._start = begin
        if self._nvtx:
            self._nvtx.push_range(f"{lane.name}: {name}")
        yield
        if self._nvtx:
            self._nvtx.pop_range()
        lane.record(end)
        self._spans.append((lane.name, name, begin, end))

    def spans(self) -> list[tuple[str, str, float, float]]:
        """(lane, name, begin, end) in milliseconds since the first began; waits for all of them."""
        for *_, end in self._spans:
            end.wait()
        return [(lane, name, self._since(begin), self._since(end)) for lane, name, begin, end in self._spans]

    def write(self, path: Path) -> None:
        """As Chrome's trace events (chrome://tracing, ui.perfetto.dev): one row for each lane."""
        events = [
            {"ph": "X", "pid": "GPU", "tid": lane, "name": name, "ts": 1e3 * begin, "dur": 1e3 * (end - begin)}
            for lane, name, begin, end in self.spans()
        ]
        write_file(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())

    def _event(self, lane: Lane | None = None) -> Event:
        from .cuda import Event

        event = Event(self._cuda, timing=True)
        if lane:
            lane.record(event)
        return event

    def _since(self, event: Event) -> float:
        assert self._start
        return float(self._cuda.call("cudaEventElapsedTime", self._start.handle, event.handle))
