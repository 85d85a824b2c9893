"""What the server's parts share: settings, engine, open sessions and connections."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field
from typing import Protocol

from ..engine import LipSyncEngine
from ..errors import LipStreamError, UnavailableError
from .access import Access
from .audit import Audit
from .freed_memory import FreedMemory
from .prometheus import PrometheusMetrics
from .realtime_session import RealtimeSession
from .references import References
from .settings import Settings

LOG = logging.getLogger("lipstream")


class Connection(Protocol):
    """A client's connection, over any transport."""

    async def run(self) -> None:
        """Serve it until it is closed."""

    async def close(self, code: int, reason: str) -> None:
        """Close it, with a close code of the protocol."""


class Place:
    """One of the sessions that are admitted at once; `release` may be called again."""

    def __init__(self, taken: set[Place]) -> None:
        self._taken = taken
        taken.add(self)

    def release(self) -> None:
        self._taken.discard(self)


@dataclass
class State:
    """The state of a server.

    Attributes:
        live: open sessions, by name. connections: all open connections. most: sessions admitted at once.
        places: taken by sessions, also by those that are being opened.
        draining: no more sessions are admitted. failed: why the engine could not be loaded.
        access: who may connect. audit: the audit log. freed: memory that sessions leave behind.
    """

    settings: Settings
    metrics: PrometheusMetrics
    engine: LipSyncEngine | None = None
    references: References | None = None
    live: dict[str, RealtimeSession] = field(default_factory=dict)
    connections: set[Connection] = field(default_factory=set)
    places: set[Place] = field(default_factory=set)
    most: int = 0
    draining: bool = False
    failed: Exception | None = None
    freed: FreedMemory = field(default_factory=FreedMemory)
    access: Access = field(init=False)
    audit: Audit = field(init=False)

    def __post_init__(self) -> None:
        self.access, self.audit = Access(self.settings), Audit(self.settings.audit)

    @property
    def overloaded(self) -> bool:
        """A session does not keep up with real time; another one would make it worse."""
        return any(live.degraded for live in self.live.values())

    @property
    def ready(self) -> bool:
        return self.most > 0 and not self.draining and not self.overloaded

    @property
    def unstarted(self) -> int:
        """Connections without a session."""
        return len(self.connections) - len(self.live)

    def take_place(self) -> Place:
        """Admit a session, which may still be opened afterwards. Raises UnavailableError."""
        if refusal := self.refusal():
            self.log_refusal(refusal)
            raise refusal
        return Place(self.places)

    def refusal(self) -> UnavailableError | None:
        """Why a session is not admitted now; None if it is."""
        if self.draining:
            label, why = "draining", "the server is shutting down"
        elif not self.most:
            label, why = "warming_up", "the engine could not be loaded" if self.failed else "the server is warming up"
        elif self.overloaded:
            label, why = "overload", "the server is overloaded"
        elif len(self.places) >= self.most:
            label, why = "capacity", f"all {self.most} sessions are in use"
        else:
            return None
        return UnavailableError(why, label=label, fix="retry later, or on another server")

    def log_refusal(self, error: LipStreamError) -> None:
        """Count and log that a client is refused."""
        self.metrics.rejected.labels(error.label if isinstance(error, UnavailableError) else error.code).inc()
        LOG.info("refused %s: %s", secrets.token_hex(4), error.found)
