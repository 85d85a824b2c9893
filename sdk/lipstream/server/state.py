"""What the server's parts share: its settings, its engine, and who is there."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Protocol

from ..engine import LipSyncEngine
from ..errors import ConfigError
from .prometheus import PrometheusMetrics
from .realtime_session import RealtimeSession
from .references import References


@dataclass(frozen=True)
class Settings:
    """Of a server.

    Attributes:
        host, port: where it listens. token: that clients must give; none only where nobody else can come.
        origins: of web pages that may connect, besides the server's own.
        max_sessions: at once; 0 to measure it at the start.
        start_within, idle_limit, total_limit: seconds until the first message, without sound, and in all.
        drain: seconds that open sessions may go on after SIGTERM.
        bitrate: kbit/s of a WebRTC picture. ice_servers: URLs of STUN and TURN servers, for WebRTC.
        bundle, backend, threads: of the engine.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    origins: tuple[str, ...] = ()
    max_sessions: int = 0
    start_within: float = 30.0
    idle_limit: float = 120.0
    total_limit: float = 3600.0
    drain: float = 30.0
    upload_mb: int = 64
    bitrate: int = 1500
    ice_servers: tuple[str, ...] = ()
    bundle: str = "tiny"
    backend: str | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} without a token: anybody could use this machine",
                fix="give --token SECRET (or LIPSTREAM_TOKEN), or leave --host at 127.0.0.1",
            )
        for name in ("start_within", "idle_limit", "total_limit"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)}", expected="seconds, more than 0")
        if not 100 <= self.bitrate <= 20_000:
            raise ConfigError(f"bitrate {self.bitrate}", expected="100 to 20000 kbit/s")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Connection(Protocol):
    """Of a client, whatever carries it."""

    async def run(self) -> None:
        """Until it is closed."""

    async def close(self, code: int, reason: str) -> None:
        """End it, with a close code of the protocol."""


@dataclass
class State:
    """Attributes: live: open sessions by their name. draining: it takes no more. failed: why there is no engine."""

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
            connected: clients that have a place already, though perhaps no session yet.
        """
        if self.draining:
            return "the server is going away"
        if not self.ready:
            return self.failed or "the server is warming up"
        if max(len(self.live), connected) >= self.most:
            return f"all {self.most} sessions are taken"
        return ""
