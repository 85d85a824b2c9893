"""Settings of a server, with their defaults. Imports nothing heavy, because the command line reads it."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field

from ..errors import ConfigError

_MOST = 10**7


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
        host, port: address to listen at. token: required of clients, if they have no key.
        keys: file of API keys (`server.keys`). Token or keys are needed except at a loopback address.
        audit: file to which the audit log is appended.
        root_path: path under which a proxy publishes the server, such as "/lips".
        forwarded_allow_ips: proxies whose X-Forwarded-* headers are believed, separated by commas; "*": all.
        origins: of web pages that may connect, besides the server's own.
        hosts: names by which clients may address the server, besides this machine's own; without any, every name with
            a token.
        private: metrics, version and openapi.json need the token, too.
        tls_cert, tls_key: PEM files, for HTTPS.
        behind_proxy: a proxy terminates TLS, and limits connections by address.
        most_connections, connections_per_address: open at once. requests_per_second: of an address, four times as many
            in a burst.
        max_sessions: open at once; 0 to measure it at the start.
        start_within, idle_limit, total_limit: seconds until the first message, without sound, and in all.
        max_late: seconds that sound waits for pictures which the machine makes too slowly; then pictures are skipped.
        drain: seconds that open sessions may continue after SIGTERM.
        sandbox: uploads are decoded in a process of their own, with limits and without network.
        references: names and files of further faces. reference_dir: existing folder of uploads that replicas share.
        bitrate: kbit/s of WebRTC video. ice_servers: URLs of STUN and TURN servers, for WebRTC.
        ice_networks: to whose addresses any WebRTC client may direct the server's packets, such as "10.0.0.0/8".
        turn_secret: shared with the TURN servers; from it each client gets credentials that expire.
        bundle, backend, threads: of the engine. trust: public keys, PEM files or their texts, of which one must have
            signed the bundle; empty: any bundle is accepted.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    keys: str = ""
    audit: str = ""
    root_path: str = ""
    forwarded_allow_ips: str = "127.0.0.1"
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    private: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    behind_proxy: bool = False
    most_connections: int = 1024
    connections_per_address: int = 128
    requests_per_second: float = 20.0
    max_sessions: int = 0
    start_within: float = 30.0
    idle_limit: float = 120.0
    total_limit: float = 3600.0
    max_late: float = 1.0
    drain: float = 20.0
    upload_mb: int = 64
    sandbox: bool = True
    references: tuple[tuple[str, str], ...] = ()
    reference_dir: str = ""
    bitrate: int = 1500
    ice_servers: tuple[str, ...] = ()
    ice_networks: tuple[str, ...] = ()
    turn_secret: str = field(default="", repr=False)
    bundle: str = "tiny"
    trust: tuple[str, ...] = ()
    backend: str | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.authenticates and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} without a token: any client could use this machine",
                fix="give --token SECRET (or LIPSTREAM_TOKEN), or --keys FILE, or leave --host at 127.0.0.1",
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("a TLS certificate without its key, or a key without its certificate", fix="give both")
        for file in filter(None, (self.tls_cert, self.tls_key)):
            if not os.access(file, os.R_OK):
                raise ConfigError(f"{file} cannot be read", expected="a PEM file")
        if not is_loopback(self.host) and not self.tls_cert and not self.behind_proxy:
            raise ConfigError(
                f"host {self.host} without TLS: the token, sound and pictures could be read on their way",
                fix="give --tls-cert FILE --tls-key FILE, or --behind-proxy if a proxy in front of it has TLS",
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port}", expected="0 to 65535; 0 takes a free one")
        if self.root_path and not self.root_path.startswith("/"):
            raise ConfigError(f"root path {self.root_path!r}", expected="a path that begins with /, such as /lips")
        names = ["bundled", *(name for name, _ in self.references)]
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or names.count(name) > 1:
                raise ConfigError(
                    f"reference {name!r}", expected="unique names of letters, digits, - and _, at most 64"
                )
        if self.reference_dir and not (os.path.isdir(self.reference_dir) and os.access(self.reference_dir, os.W_OK)):
            raise ConfigError(
                f"reference folder {self.reference_dir} does not exist or cannot be written",
                fix=f"mkdir -p {self.reference_dir}",
            )
        for name, least in (("max_sessions", 0), ("drain", 0), ("upload_mb", 1), ("connections_per_address", 1)):
            if not least <= getattr(self, name) <= _MOST:
                raise ConfigError(f"{name} {getattr(self, name)}", expected=f"{least} to {_MOST}")
        if not 8 <= self.most_connections <= _MOST:
            raise ConfigError(f"most_connections {self.most_connections}", expected=f"8 to {_MOST}")
        if not 0 < self.requests_per_second <= _MOST:
            raise ConfigError(f"requests_per_second {self.requests_per_second}", expected="more than 0")
        for name in ("start_within", "idle_limit", "total_limit", "max_late"):
            if not 0 < getattr(self, name) <= _MOST:
                raise ConfigError(f"{name} {getattr(self, name)}", expected="seconds, more than 0")
        for url in self.ice_servers:
            if not re.fullmatch(r"(stun|stuns|turn|turns):[^\s@/]+", url):
                raise ConfigError(
                    f"ICE server {url!r}",
                    expected="stun:HOST:PORT, turn:HOST:PORT or turns:HOST:PORT, without a user name",
                    fix="give the secret of a TURN server as LIPSTREAM_TURN_SECRET",
                )
        for text in self.ice_networks:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise ConfigError(f"ICE network {text!r}: {error}", expected="a network such as 10.0.0.0/8") from error
        if not 100 <= self.bitrate <= 20_000:
            raise ConfigError(f"bitrate {self.bitrate}", expected="100 to 20000 kbit/s")

    @property
    def authenticates(self) -> bool:
        """Whether clients need a token or key."""
        return bool(self.token or self.keys)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
