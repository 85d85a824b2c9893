"""The metrics hook: receives what an engine and its sessions count and measure."""

from __future__ import annotations

from typing import Protocol


class Metrics(Protocol):
    """Passed to `LipSyncEngine.load`. Called from any thread, during generation: must be fast and must not raise.

    Counted: ``sessions_opened``, ``sessions_closed``, ``interrupts``, ``chunks``, ``frames``.
    Observed, in seconds: ``first_frame`` (from a segment's first sound to its first frame), ``chunk`` (to generate
    one), ``queue`` (pending audio when a chunk begins), ``interrupt`` (from the call until the next chunk may begin).
    """

    def count(self, name: str, by: int = 1) -> None: ...

    def observe(self, name: str, seconds: float) -> None: ...


class NoMetrics:
    """No-op metrics, the default."""

    def count(self, name: str, by: int = 1) -> None:
        """Do nothing."""

    def observe(self, name: str, seconds: float) -> None:
        """Do nothing."""
