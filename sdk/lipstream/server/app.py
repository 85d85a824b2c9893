"""The server: who may come in, how many, for how long, and what else can be asked of it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.cors import CORSMiddleware

from ..backends.base import cores
from ..engine import LipSyncEngine
from ..errors import ConfigError, LipStreamError, ProtocolError, SlowClientError, UploadTooLargeError
from ..media import FPS
from .live import LiveSession
from .measures import Measures, sessions_that_fit
from .protocol import (
    GOING_AWAY,
    NORMAL,
    POLICY,
    TRY_AGAIN,
    VERSION,
    Close,
    Flush,
    Interrupt,
    Start,
    failure,
    hello,
    parse,
)
from .references import References

LOG = logging.getLogger("lipstream")
PAGE = Path(__file__).with_name("page.html")
MOST_ERRORS = 50
"""Wrong messages after which a connection is closed."""


@dataclass(frozen=True)
class Settings:
    """Of a server.

    Attributes:
        host, port: where it listens. token: that clients must give; none only where nobody else can come.
        origins: of web pages that may connect, besides the server's own.
        max_sessions: at once; 0 to measure it at the start.
        start_within, idle_limit, total_limit: seconds until the first message, without sound, and in all.
        drain: seconds that open sessions may go on after SIGTERM.
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


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass
class State:
    """What the server's parts share. Attributes: live: open sessions by their name. draining: it takes no more."""

    settings: Settings
    measures: Measures
    engine: LipSyncEngine | None = None
    references: References | None = None
    live: dict[str, LiveSession] = field(default_factory=dict)
    connections: set[WebSocket] = field(default_factory=set)
    most: int = 0
    draining: bool = False
    failed: str = ""

    @property
    def ready(self) -> bool:
        return self.most > 0 and not self.draining

    def refusal(self) -> str:
        """Why a session is not admitted now; empty if it is."""
        if self.draining:
            return "the server is going away"
        if not self.ready:
            return self.failed or "the server is warming up"
        if len(self.live) >= self.most:
            return f"all {self.most} sessions are taken"
        return ""


def create_app(settings: Settings) -> FastAPI:
    """The application; the engine loads while it starts to answer."""
    state = State(settings, Measures(version("lipstream"), str(Path(settings.bundle).name)))
    pool = ThreadPoolExecutor(2 * cores(), thread_name_prefix="lipstream-pack")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm_up(state))
        yield
        warming.cancel()
        for live in list(state.live.values()):
            live.close()
        pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="LipStream", version=version("lipstream"), lifespan=lifespan)
    app.state.lipstream = state
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization"],
        )

    def admitted(request: Request) -> None:
        """REST calls that do something need the token, and a page's come from where pages may."""
        if not _has_token(settings, request.headers.get("authorization", ""), request.query_params.get("token", "")):
            raise HTTPException(401, "wrong or missing token", {"WWW-Authenticate": "Bearer"})
        if not _may_come_from(settings, request.headers.get("origin"), request.headers.get("host", "")):
            raise HTTPException(403, "this page's origin is not allowed")

    text = PAGE.read_text()

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        policy = "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; "
        policy += "connect-src 'self' ws: wss:; img-src 'self' data: blob:; media-src 'self' blob:; worker-src blob:"
        return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})

    @app.get("/v1/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/v1/health/ready")
    async def ready() -> JSONResponse:
        """200 once it is warm, 503 before, while it drains, and when the engine could not be loaded."""
        status = {"status": "ready" if state.ready else state.refusal() or "not ready"}
        return JSONResponse(status, 200 if state.ready else 503)

    @app.get("/v1/version")
    async def versions() -> dict[str, Any]:
        """Of the server, its bundle and the protocol."""
        manifest = state.engine.manifest if state.engine else None
        return {
            "lipstream": version("lipstream"),
            "protocol": VERSION,
            "bundle": manifest.model.get("name") if manifest else None,
            "max_sessions": state.most,
        }

    @app.get("/v1/metrics")
    async def metrics() -> Response:
        """In Prometheus's format."""
        return Response(state.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/v1/references", dependencies=[Depends(admitted)])
    async def upload(request: Request) -> JSONResponse:
        """A video or picture with a face, as the body; the answer's `reference` is for the message `start`."""
        if state.references is None:
            raise HTTPException(503, "the server is warming up")
        try:
            if int(request.headers.get("content-length", 0)) > settings.upload_mb << 20:
                raise UploadTooLargeError(f"more than {settings.upload_mb} MB", fix="cut it to a few seconds")
            name, prepared = await state.references.upload(request.stream())
        except LipStreamError as error:
            return JSONResponse(failure(error, fatal=True), 413 if isinstance(error, UploadTooLargeError) else 422)
        width, height = prepared.size
        return JSONResponse({"reference": name, "width": width, "height": height, "frames": prepared.frames})

    @app.websocket("/v1/session")
    async def session(socket: WebSocket) -> None:
        """docs/protocol.md."""
        origin, host = socket.headers.get("origin"), socket.headers.get("host", "")
        await socket.accept()
        if not _has_token(settings, socket.headers.get("authorization", ""), socket.query_params.get("token", "")):
            await _refuse(state, socket, POLICY, "wrong or missing token", "token")
        elif not _may_come_from(settings, origin, host):
            await _refuse(state, socket, POLICY, "this page's origin is not allowed", "origin")
        elif reason := state.refusal():
            await _refuse(state, socket, TRY_AGAIN, reason, "draining" if state.draining else "capacity")
        else:
            state.connections.add(socket)
            try:
                await _Connection(state, socket, pool).run()
            finally:
                state.connections.discard(socket)

    return app


async def _warm_up(state: State) -> None:
    """Load the engine, prepare the bundled face, measure how many sessions fit."""
    settings = state.settings

    def load() -> tuple[LipSyncEngine, int]:
        engine = LipSyncEngine.load(
            settings.bundle, backend=settings.backend, threads=settings.threads, metrics=state.measures
        )
        state.references = References(engine, megabytes=settings.upload_mb)
        state.references.load_bundled()
        if settings.max_sessions:
            engine.warmup()
            return engine, settings.max_sessions
        return engine, sessions_that_fit(engine, state.references.get("bundled"))

    try:
        state.engine, most = await asyncio.to_thread(load)
    except LipStreamError as error:
        state.failed = str(error)
        LOG.error("the engine does not load: %s", error)
        return
    state.most = most
    state.measures.most.set(most)
    LOG.info("ready for %d sessions", most)


async def _refuse(state: State, socket: WebSocket, code: int, reason: str, label: str) -> None:
    state.measures.rejected.labels(label).inc()
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(code, reason)


def _has_token(settings: Settings, header: str, query: str) -> bool:
    given = header.removeprefix("Bearer ") if header.startswith("Bearer ") else query
    return not settings.token or hmac.compare_digest(given.encode(), settings.token.encode())


def _may_come_from(settings: Settings, origin: str | None, host: str) -> bool:
    """Programs send no origin; a page's must be this server's own, or a named one."""
    if origin is None or origin in settings.origins:
        return True
    return urlsplit(origin).netloc == host and (bool(settings.token) or is_loopback(urlsplit(origin).hostname or ""))


class _Connection:
    """One WebSocket: reads messages, runs at most one session."""

    def __init__(self, state: State, socket: WebSocket, pool: ThreadPoolExecutor) -> None:
        self._state, self._socket, self._pool = state, socket, pool
        self._live: LiveSession | None = None
        self._errors = 0
        self._begun = time.monotonic()

    async def run(self) -> None:
        state, settings = self._state, self._state.settings
        assert state.references is not None
        code, reason = NORMAL, "closed"
        name = ""
        try:
            await self._send(hello(version("lipstream"), state.references.names()))
            start = await asyncio.wait_for(self._start(), settings.start_within)
            if start is None:
                return
            if refusal := state.refusal():  # others came in between
                code, reason = TRY_AGAIN, refusal
                state.measures.rejected.labels("capacity").inc()
                return
            name = secrets.token_hex(4)
            self._live = live = await self._open(start)
            state.live[name] = live
            state.measures.active.set(len(state.live))
            width, height = live.size
            started = {"type": "started", "session": name, "width": width, "height": height, "fps": FPS}
            live.say(started | {"sample_rate": start.sample_rate, "channels": start.channels})
            code, reason = await self._talk(live)
        except TimeoutError:
            code, reason = POLICY, f"no start within {settings.start_within:g} s"
        except (WebSocketDisconnect, RuntimeError):  # gone without a word
            reason = "the client is gone"
        except SlowClientError as error:
            code, reason = TRY_AGAIN, error.found
        except LipStreamError as error:
            code, reason = POLICY, error.found
            with contextlib.suppress(Exception):
                await self._send(failure(error, fatal=True))
        finally:
            if self._live is not None:
                self._live.close()
                state.live.pop(name, None)
                state.measures.active.set(len(state.live))
            LOG.debug("connection ended: %s", reason)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._socket.close(code, reason[:100]), 5)

    async def _open(self, start: Start) -> LiveSession:
        state = self._state
        assert state.engine is not None
        assert state.references is not None
        reference = state.references.get(start.reference)
        return LiveSession(state.engine, reference, start, self._send, self._pool, state.measures)

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        if isinstance(message, bytes):
            await self._socket.send_bytes(message)
        else:
            await self._socket.send_json(message)

    async def _start(self) -> Start | None:
        """The first message, once there is a right one; None if the client closes."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            try:
                if (text := message.get("text")) is None:
                    raise ProtocolError("sound before the start", expected='first {"type": "start", ...}')
                wanted = parse(text)
                if isinstance(wanted, Close):
                    return None
                if isinstance(wanted, Start):
                    return wanted
                raise ProtocolError(f"{wanted.type} before the start", expected='first {"type": "start", ...}')
            except ProtocolError as error:
                await self._wrong(error)

    async def _talk(self, live: LiveSession) -> tuple[int, str]:
        """Until somebody ends it; the close code and the reason."""
        running = asyncio.create_task(live.run())
        reading = asyncio.create_task(self._read(live))
        limits = asyncio.create_task(self._limits(live))
        tasks = {running, reading, limits}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            first = next(iter(done))
            if running in done:
                running.result()
                return NORMAL, "closed"
            return first.result() or (NORMAL, "closed")
        finally:
            live.close()
            for task in (reading, limits):
                task.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(running, 2)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, live: LiveSession) -> tuple[int, str]:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return NORMAL, "the client is gone"
            try:
                if (data := message.get("bytes")) is not None:
                    live.push(data)
                    continue
                match parse(message["text"]):
                    case Flush():
                        live.flush()
                    case Interrupt():
                        live.interrupt()
                    case Close():
                        return NORMAL, "closed"
                    case Start():
                        raise ProtocolError("a second start", expected="one session on each connection")
            except LipStreamError as error:  # the message is for nothing; the session goes on
                await self._wrong(error)

    async def _limits(self, live: LiveSession) -> tuple[int, str]:
        """Ends what has been idle, or open, for too long."""
        settings = self._state.settings
        while True:
            now = time.monotonic()
            quiet, whole = live.heard_at + settings.idle_limit - now, self._begun + settings.total_limit - now
            if quiet <= 0:
                return NORMAL, f"no sound for {settings.idle_limit:g} s"
            if whole <= 0:
                return NORMAL, f"open for {settings.total_limit:g} s"
            await asyncio.sleep(min(quiet, whole))

    async def _wrong(self, error: LipStreamError) -> None:
        self._errors += 1
        if self._errors > MOST_ERRORS:
            raise ProtocolError(f"more than {MOST_ERRORS} wrong messages", fix="read docs/protocol.md")
        message = failure(error, fatal=False)
        if self._live is not None:
            self._live.say(message)
        else:
            await self._send(message)


async def drain(state: State) -> None:
    """Take no more sessions, tell the open ones, and wait for them as long as the settings say."""
    state.draining = True
    seconds = state.settings.drain if state.live else 0
    for live in list(state.live.values()):
        live.say({"type": "closing", "reason": "the server is going away", "seconds": seconds})
    end = time.monotonic() + seconds
    while state.live and time.monotonic() < end:
        await asyncio.sleep(0.05)
    for socket in list(state.connections):
        with contextlib.suppress(Exception):
            await socket.close(GOING_AWAY, "the server is going away")
