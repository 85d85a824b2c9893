"""Errors as answers to HTTP requests: always JSON, in the form of the protocol's message `error`."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import (
    HostError,
    LipStreamError,
    OriginError,
    ProtocolError,
    RateError,
    ScopeError,
    SlowClientError,
    TokenError,
    UnavailableError,
    UploadTooLargeError,
)
from .protocol import INTERNAL, failure

LOG = logging.getLogger("lipstream")
_STATUS = {
    TokenError: 401,
    OriginError: 403,
    HostError: 403,
    ScopeError: 403,
    SlowClientError: 408,
    UploadTooLargeError: 413,
    RateError: 429,
    UnavailableError: 503,
}
_HEADERS = {
    TokenError: {"WWW-Authenticate": "Bearer"},
    RateError: {"Retry-After": "1"},
    UnavailableError: {"Retry-After": "5"},
}


def response(error: LipStreamError) -> JSONResponse:
    """The answer to a request that failed: 401, 403, 408, 413, 429 or 503, and 422 for every other error."""
    return JSONResponse(failure(error, fatal=True), _STATUS.get(type(error), 422), _HEADERS.get(type(error)))


def unexpected(error: Exception) -> dict[str, Any]:
    """Log an error that is a bug, with its trace; returns what the client sees of it: an id, which the log has too."""
    number = secrets.token_hex(4)
    LOG.error("unexpected error %s", number, exc_info=error)
    return {
        "type": "error",
        "code": "internal",
        "message": f"an unexpected error of the server, {number}",
        "expected": "",
        "fix": "report this id to whoever runs the server: its log has the details",
        "fatal": True,
        "id": number,
    }


def add_handlers(app: FastAPI) -> None:
    """Let `app` answer every error in this form."""

    async def typed(_: Request, error: Exception) -> Response:
        assert isinstance(error, LipStreamError)
        return response(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return response(ProtocolError(f"{where}: {first['msg']}", expected="docs/protocol.md"))

    async def other(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body = failure(ProtocolError(str(error.detail), expected="docs/protocol.md"), fatal=True)
        return JSONResponse(body, error.status_code, error.headers)

    app.add_exception_handler(LipStreamError, typed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
    app.add_middleware(_Unexpected)


class _Unexpected:
    """Answers what no handler expects with 500, or closes a WebSocket with 1011."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] in ("http.response.start", "websocket.close")
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            body = unexpected(error)
            if started or scope["type"] == "lifespan":
                raise
            if scope["type"] == "http":
                await JSONResponse(body, 500)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": INTERNAL, "reason": body["message"]})
