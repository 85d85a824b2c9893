"""Whether a session keeps up with real time."""

from __future__ import annotations

from ..media import FPS

FORGIVEN = 0.2 / FPS
"""Seconds of delay forgotten with each frame."""
RECOVERED = 5 * FPS
"""Frames on time after which a session counts as keeping up again."""


class Punctuality:
    """Judges a session by its frames.

    Args:
        most: seconds of delay, summed up, in a session that keeps up.

    Attributes:
        degraded: pictures were skipped, or delays became more than `most`, within the last `RECOVERED` frames.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self.degraded = False
        self._late, self._on_time = 0.0, 0

    def add(self, delay: float, *, skipped: bool = False) -> bool:
        """Count a frame by which the session was delayed, or that has no picture; whether `degraded` changed."""
        before = self.degraded
        self._late = min(self._most, max(0.0, self._late - FORGIVEN) + delay)
        if skipped or self._late >= self._most:
            self.degraded, self._on_time = True, 0
        elif self.degraded:
            self._on_time = 0 if delay else self._on_time + 1
            self.degraded = self._on_time < RECOVERED
        return self.degraded != before
