"""What the server's parts share: settings, engine, open sessions and connections."""

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
    """Settings of a server.

    Attributes:
        host, port: address to listen at. token: required of clients; may be empty only on a loopback address.
        origins: of web pages that may connect, besides the server's own.
        max_sessions: open at once; 0 to measure it at the start.
        start_within, idle_limit, total_limit: seconds until the first message, without sound, and in all.
        drain: seconds that open sessions may continue after SIGTERM.
        bitrate: kbit/s of WebRTC video. ice_servers: URLs of STUN and TURN servers, for WebRTC.
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
                f"host {self.host} without a token: any client could use this machine",
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
