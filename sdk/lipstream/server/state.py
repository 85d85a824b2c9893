"""What the server's parts share: settings, engine, open sessions and connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ..engine import LipSyncEngine
from .prometheus import PrometheusMetrics
from .realtime_session import RealtimeSession
from .references import References
from .settings import Settings


class Connection(Protocol):
    """A client's connection, over any transport."""

    async def run(self) -> None:
        """Serve it until it is closed."""

    async def close(self, code: int, reason: str) -> None:
        """Close it, with a close code of the protocol."""


@dataclass
class State:
    """The state of a server.

    Attributes:
        live: open sessions, by name. connections: all open connections. most: sessions admitted at once.
        draining: no more sessions are admitted. failed: why the engine could not be loaded.
    """

    settings: Settings
    metrics: PrometheusMetrics
    engine: LipSyncEngine | None = None
    references: References | None = None
    live: dict[str, RealtimeSession] = field(default_factory=dict)
    connections: set[Connection] = field(default_factory=set)
    most: int = 0
    draining: bool = False
    failed: str = ""

    @property
    def ready(self) -> bool:
        return self.most > 0 and not self.draining

    def refusal(self, connected: int = 0) -> str:
        """Why a session is not admitted now; empty if it is.

        Args:
            connected: clients that count towards the limit already, though perhaps without a session yet.
        """
        if self.draining:
            return "the server is shutting down"
        if not self.ready:
            return self.failed or "the server is warming up"
        if max(len(self.live), connected) >= self.most:
            return f"all {self.most} sessions are in use"
        return ""
