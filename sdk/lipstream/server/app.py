"""The server's routes: health, version, metrics, uploads, sessions; with authentication and admission control."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from ..backends.base import cores
from ..engine import LipSyncEngine
from ..errors import SlowClientError, UnavailableError
from ..session.in_progress import longest
from .access import TICKET_SECONDS, TOKEN
from .addresses import network_of
from .failures import add_handlers
from .frame_encoder import JpegEncoder
from .gate import Gate, who
from .ice import ice_servers
from .prometheus import PrometheusMetrics
from .protocol import GOING_AWAY, TRY_AGAIN, VERSION, failure
from .references import References
from .settings import Settings
from .state import Connection, State
from .transports.websocket import WebSocketConnection

LOG = logging.getLogger("lipstream")
MOST_UNSTARTED = 32
"""Connections that may wait for their message `start`, beside as many as there are sessions."""
STUCK = 120.0
"""Seconds after which a chunk, which takes a fraction of one, is taken for endless."""
PAGE = Path(__file__).with_name("page.html")


def create_app(settings: Settings) -> FastAPI:
    """The application; the engine loads in the background while it already answers."""
    state = State(settings, PrometheusMetrics(version("lipstream"), str(Path(settings.bundle).name)))
    pool = ThreadPoolExecutor(2 * cores(), thread_name_prefix="lipstream-pack")
    has_webrtc = find_spec("aiortc") is not None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if has_webrtc:
            from .transports.webrtc import log_errors_of_peers

            log_errors_of_peers(asyncio.get_running_loop())
        warming = asyncio.create_task(_warm_up(state))
        yield
        warming.cancel()
        for live in list(state.live.values()):
            live.close()
        pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="LipStream",
        version=version("lipstream"),
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts of another site; openapi.json stays
        redoc_url=None,
    )
    app.root_path = settings.root_path.rstrip(
        "/"
    )  # as an argument it is deprecated; uvicorn's needs a proxy that removes the path
    app.state.lipstream = state
    add_handlers(app)
    app.add_middleware(Gate, state=state)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization"],
        )

    async def run_connection(connection: Connection) -> None:
        """Run `connection`, registered so that `drain` can close it."""
        state.connections.add(connection)
        try:
            await connection.run()
        finally:
            state.connections.discard(connection)

    base = f'<base href="{escape(settings.root_path.rstrip("/"))}/">' if settings.root_path else ""
    text = PAGE.read_text().replace("<!-- base -->", base)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        policy = "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; "
        policy += "frame-ancestors 'none'; connect-src 'self' ws: wss:; "
        policy += "img-src 'self' data: blob:; media-src 'self' blob:; worker-src blob:"
        return HTMLResponse(
            text,
            headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
        )

    @app.get("/v1/health/live")
    async def live() -> JSONResponse:
        """200 while the process works; 503 if a chunk does not end, which only a restart ends."""
        stuck = longest() > STUCK
        return JSONResponse({"status": "stuck" if stuck else "live"}, 503 if stuck else 200)

    @app.get("/v1/health/ready")
    async def ready() -> JSONResponse:
        """200 once the engine is warm; 503 before, while the server drains, and while it is overloaded."""
        refusal = None if state.ready else state.refusal()
        return JSONResponse({"status": refusal.found if refusal else "ready"}, 503 if refusal else 200)

    @app.get("/v1/version")
    async def versions() -> dict[str, Any]:
        """Versions of the server and the protocol, the bundle, and what the server offers."""
        manifest = state.engine.manifest if state.engine else None
        return {
            "lipstream": version("lipstream"),
            "protocol": VERSION,
            "bundle": manifest.model.get("name") if manifest else None,
            "max_sessions": state.most,
            "token": settings.authenticates,
            "webrtc": has_webrtc,
        }

    @app.get("/v1/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/ice")
    async def ice() -> dict[str, Any]:
        """STUN and TURN servers for a WebRTC client's `RTCPeerConnection`, with credentials for one session."""
        return {"ice_servers": ice_servers(settings)}

    @app.post("/v1/tickets")
    async def ticket(request: Request) -> dict[str, Any]:
        """A ticket that opens one WebSocket, as its query `ticket`, within `seconds`: for clients without headers."""
        return {"ticket": state.access.ticket(who(request).key), "seconds": TICKET_SECONDS}

    @app.post("/v1/references")
    async def upload(request: Request) -> JSONResponse:
        """Upload a video or picture with a face, as the body; use the response's `reference` in the message `start`."""
        if state.references is None:
            raise state.refusal() or UnavailableError("the server is warming up", label="warming_up")
        client = who(request)
        owner = client.key if client.key not in ("", TOKEN) else network_of(client.address)
        try:
            name, prepared = await state.references.upload(request.stream(), owner, request.is_disconnected)
        except ClientDisconnect:
            return JSONResponse({}, 400)  # nobody reads it
        state.audit.write("uploaded", client, reference=name)
        width, height = prepared.size
        return JSONResponse({"reference": name, "width": width, "height": height, "frames": prepared.frames})

    if has_webrtc:
        from .transports.webrtc import add_route

        add_route(app, state, run_connection)

    @app.websocket("/v1/session")
    async def session(socket: WebSocket) -> None:
        """A session over WebSocket: docs/protocol.md."""
        await socket.accept()  # some proxies hide the status of an upgrade that is denied
        refusal = state.refusal()
        if refusal is None and state.unstarted >= MOST_UNSTARTED + state.most:
            refusal = UnavailableError("too many connections without a session", label="unstarted", fix="retry later")
        if refusal:
            state.log_refusal(refusal)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.send_json(failure(refusal, fatal=True))
                await socket.close(TRY_AGAIN, refusal.found)
        else:
            await run_connection(WebSocketConnection(state, socket, pool))

    return app


async def _warm_up(state: State) -> None:
    """Load the engine, prepare the bundled face, measure how many sessions fit."""
    settings = state.settings

    def load() -> tuple[LipSyncEngine, int]:
        engine = LipSyncEngine.load(
            settings.bundle,
            backend=settings.backend,
            threads=settings.threads,
            metrics=state.metrics,
            trust=settings.trust or None,
        )
        folder = Path(settings.reference_dir) if settings.reference_dir else None
        state.references = References(engine, megabytes=settings.upload_mb, folder=folder, sandbox=settings.sandbox)
        state.references.load_permanent(settings.references)
        if settings.max_sessions:
            engine.warmup(sessions=settings.max_sessions)
            return engine, settings.max_sessions
        encoder = JpegEncoder()  # encoding takes its share of every session
        return engine, engine.capacity(state.references.bundled, use=lambda frame: encoder.encode(frame.picture))

    try:
        state.engine, most = await asyncio.to_thread(load)
    except Exception as error:
        state.failed = error
        LOG.error("the engine could not be loaded: %s", error)
        return
    state.most = most
    state.metrics.most.set(most)
    LOG.info("ready for %d sessions", most)


async def drain(state: State) -> None:
    """Refuse new sessions, notify the open ones, wait up to `Settings.drain` seconds for them, then close them."""
    state.draining = True
    seconds = state.settings.drain if state.live else 0
    LOG.info("shutting down: %d sessions may continue for %g s", len(state.live), seconds)
    for live in list(state.live.values()):
        with contextlib.suppress(SlowClientError):
            live.send_message({"type": "closing", "reason": "the server is shutting down", "seconds": seconds})
    end = time.monotonic() + seconds
    while state.live and time.monotonic() < end:
        await asyncio.sleep(0.05)
    closing = [connection.close(GOING_AWAY, "the server is shutting down") for connection in state.connections]
    await asyncio.gather(*closing, return_exceptions=True)
    LOG.info("shut down")
