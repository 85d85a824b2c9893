"""Runs the server until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from types import FrameType

import uvicorn

from ..errors import ConfigError
from .app import create_app, drain
from .connections import LimitedSocket, Room, WebSocketProtocol, guarded
from .rate import LogBudget
from .settings import Settings
from .state import State


class Server(uvicorn.Server):
    """uvicorn that drains open sessions at the first signal and stops at once at the second."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state
        self._draining: asyncio.Future[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None and self.started:
            self._draining = asyncio.get_running_loop().create_task(self._drained())
        else:
            self.force_exit = True
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._state.failed is not None

    async def _drained(self) -> None:
        try:
            await drain(self._state)
        finally:
            self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain. The address is printed on standard error.

    Raises:
        ConfigError: the address cannot be listened at. What `LipSyncEngine.load` raises.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogBudget())
    logging.getLogger("lipstream").setLevel(logging.INFO)
    if settings.tls_cert:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{settings.tls_cert} and {settings.tls_key} cannot be used for TLS: {error}",
                expected="a certificate and its key, PEM",
            ) from error
    trusted = settings.forwarded_allow_ips if settings.behind_proxy else ""
    room = Room(settings.most_connections, settings.connections_per_address, trusted)
    with LimitedSocket.of(listen(settings.host, settings.port), room) as listener:
        app = create_app(settings)
        config = uvicorn.Config(
            app,
            loop="asyncio",  # uvloop would accept connections by itself
            http=guarded(room),
            ws=WebSocketProtocol,
            ssl_certfile=settings.tls_cert or None,
            ssl_keyfile=settings.tls_key or None,
            ws_max_size=1 << 20,
            ws_max_queue=32,
            ws_per_message_deflate=False,
            log_level="warning",
            log_config=None,  # its own handlers would have no budget: a client's garbage would fill the log
            access_log=False,  # it has addresses with tickets
            forwarded_allow_ips=settings.forwarded_allow_ips,
            timeout_graceful_shutdown=5,
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "https" if settings.tls_cert else "http"
        address = f"{scheme}://{host}:{listener.getsockname()[1]}{settings.root_path.rstrip('/')}/"
        note = " and enter the token" if settings.authenticates else ""
        print(f"LipStream: open {address}{note}", file=sys.stderr, flush=True)
        state = app.state.lipstream
        Server(config, state).run(sockets=[listener])
    if state.failed is not None:
        raise state.failed


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        ConfigError: the port is taken, or the host is not this machine's.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ConfigError(
            f"{host} port {port} cannot be listened at: {error.strerror}",
            expected="an address of this machine, and a port that no other program uses",
            fix="choose another one with --port or --host",
        ) from error
