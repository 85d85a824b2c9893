"""Runs the server until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
import sys
from types import FrameType

import uvicorn

from .app import create_app, drain
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

    async def _drained(self) -> None:
        await drain(self._state)
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain. The address is printed on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        ws_max_size=1 << 20,
        ws_max_queue=32,
        ws_per_message_deflate=False,
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    token = f"?token={settings.token}" if settings.token else ""
    print(f"LipStream: open http://{host}:{settings.port}/{token}", file=sys.stderr, flush=True)
    Server(config, app.state.lipstream).run()
