"""What is decided about a request before a byte of its body is read: host, token, origin, rate, size, speed.

Everything needs the token (or, for a WebSocket, a ticket) but the page and health; metrics, version and openapi.json,
too, if the settings say so. Small bodies are read here, whole; that of an upload is limited while it is read. All
answers get the security headers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import (
    HostError,
    LipStreamError,
    ProtocolError,
    RateError,
    SlowClientError,
    TokenError,
    UploadTooLargeError,
)
from .addresses import network_of
from .audit import Who
from .failures import response
from .protocol import POLICY
from .rate import TokenBuckets
from .settings import is_loopback
from .state import State

HEALTH = frozenset({"/v1/health/live", "/v1/health/ready"})
PAGE = "/"
"""Paths that need no token."""
PUBLIC = frozenset({"/v1/version", "/v1/metrics", "/openapi.json"})
"""Paths that need one only with `Settings.private`."""
UPLOAD = "/v1/references"
SMALL = 1 << 19
"""Bytes of a body that is not an upload."""
GRACE, LEAST_RATE = 10.0, 16 << 10
"""Seconds for the first bytes of a body, and bytes a second that must arrive after that."""
FAILURES, FORGIVEN = 20, 0.2
"""Requests with a wrong token that an address may send at once, and how many more each second."""
AUDITED = 5.0
"""Refusals a second that the audit log has on average; twenty times as many at once."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=(self)",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def who(request: HTTPConnection) -> Who:
    """The client of a request that has passed the gate."""
    return Who(request.scope.get("lipstream.key", ""), request.client.host if request.client else "")


class Gate:
    """ASGI middleware; see above."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state
        settings = state.settings
        self._requests = TokenBuckets(settings.requests_per_second, 4 * settings.requests_per_second)
        self._failures = TokenBuckets(FORGIVEN, FAILURES)
        self._audited = TokenBuckets(AUDITED, 20 * AUDITED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        send = _with_headers(send)
        request, path = HTTPConnection(scope), _path(scope)
        try:
            if "//" in path or not path.isprintable():  # routing would take it for another one
                raise ProtocolError("an address that does not exist", expected="docs/protocol.md")
            scope["lipstream.key"] = ""
            scope["lipstream.key"] = self._admit(request, path, websocket=scope["type"] == "websocket")
            if scope["type"] == "http":
                most = self._state.settings.upload_mb << 20 if path == UPLOAD else SMALL
                body = _Body(receive, most, declared=request.headers.get("content-length", ""))
                receive = body.receive if path == UPLOAD else _replayed(await body.whole(), receive)
        except LipStreamError as error:
            self._state.log_refusal(error)
            if self._audited.take(""):  # else anybody could fill the disk
                self._state.audit.write("refused", who(request), path=path[:100], code=error.code)
            return await _deny(error, scope, receive, send)
        await self._app(scope, receive, send)

    def _admit(self, request: HTTPConnection, path: str, *, websocket: bool) -> str:
        """Whose request this is, by the name of its key; raises unless it may go on. Its body is not known yet."""
        settings, client = self._state.settings, network_of(request.client.host if request.client else "")
        if path in HEALTH and not websocket:  # a supervisor addresses the machine as it likes
            return ""
        self._check_host(request.headers.get("host", ""))
        if path == PAGE and not websocket:
            return ""
        if not self._requests.take(client):
            raise RateError(f"more than {settings.requests_per_second:g} requests a second", fix="send fewer")
        if request.scope.get("method") == "OPTIONS" or (path in PUBLIC and not settings.private):
            return ""
        scope = "upload" if path == UPLOAD else "metrics" if path in PUBLIC else "session"
        try:
            return self._state.access.check(request, scope, ticket=websocket)
        except TokenError:
            if not self._failures.take(client):
                raise RateError("too many requests without a valid token", fix="wait some seconds") from None
            raise

    def _check_host(self, host: str) -> None:
        """Raise HostError for a name that is not the server's: a page of it could be another site's (DNS rebinding)."""
        settings = self._state.settings
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # such as an open bracket
            name = ""
        if settings.hosts:
            allowed = name in settings.hosts or is_loopback(name)
        else:
            allowed = settings.authenticates or is_loopback(name)
        if not allowed:
            raise HostError(
                "the server is not known by this name",
                expected=f"one of {', '.join(settings.hosts)}" if settings.hosts else "localhost, without a token",
                fix="start it with --allowed-host NAME",
            )


class _Body:
    """A request's body, bounded in size and in the time that it takes.

    Args:
        most: bytes. declared: the header Content-Length, or "".
    """

    def __init__(self, receive: Receive, most: int, declared: str) -> None:
        self._receive, self._most = receive, most
        self._begun, self._size, self._complete = time.monotonic(), 0, False
        if declared.isdecimal() and int(declared) > most:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next part.

        Raises:
            UploadTooLargeError, SlowClientError.
        """
        if self._complete:  # what comes now is the client's end
            return await self._receive()
        left = self._begun + GRACE + self._size / LEAST_RATE - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.01, left))
        except TimeoutError:
            raise SlowClientError(
                "the request's body arrives too slowly",
                expected=f"something in {GRACE:g} s, then at least {LEAST_RATE >> 10} KiB a second",
            ) from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size > self._most:
            raise self._too_large()
        return message

    async def whole(self) -> bytes:
        """All of it. Raises as `receive`."""
        parts = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        return b"".join(parts)

    def _too_large(self) -> UploadTooLargeError:
        size = f"{self._most >> 20} MB" if self._most > SMALL else f"{self._most >> 10} KiB"
        return UploadTooLargeError(f"more than {size}", fix="send less")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read, and then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _path(scope: Scope) -> str:
    """The path behind the one under which a proxy publishes the server."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


async def _deny(error: LipStreamError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the error's status; where a server cannot do that for a WebSocket, it becomes 403."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        return await send({"type": "websocket.close", "code": POLICY, "reason": error.found})
    answer = response(error)
    answer.headers["Connection"] = "close"  # what is left of the body is not read
    await answer(scope, receive, send)
