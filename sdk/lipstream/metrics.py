"""The metrics hook: what an engine and its sessions count and measure, handed to whoever wants it."""

from __future__ import annotations

from typing import Protocol


class Metrics(Protocol):
    """Given to `LipSyncEngine.load`. Called from any thread, in the middle of work: be quick, and raise nothing.

    Counted: ``sessions_opened``, ``sessions_closed``, ``interrupts``, ``chunks``, ``frames``.
    Observed, in seconds: ``first_frame`` (from a segment's first sound to its first frame), ``chunk`` (to make one),
    ``queue`` (of sound that waits when a chunk begins), ``interrupt`` (from the call until the next chunk may begin).
    """

    def count(self, name: str, by: int = 1) -> None: ...

    def observe(self, name: str, seconds: float) -> None: ...


class NoMetrics:
    """The default: nobody listens."""

    def count(self, name: str, by: int = 1) -> None:
        """Nothing."""

    def observe(self, name: str, seconds: float) -> None:
        """Nothing."""
