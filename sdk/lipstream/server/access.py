"""Who may use the server: a token or API keys, one-time tickets for WebSockets, origins of pages.

Browsers cannot set headers on a WebSocket, and addresses are written to logs: so a page sends its key in a header to
get a ticket, and the ticket in the address. A ticket names the key it was given for, and is signed with the server's
token, so any replica with the same token accepts it (without a token: the one that gave it); that it is used once is
checked by each replica for itself.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from ..errors import OriginError, ScopeError, TokenError
from .keys import SCOPES, Key, KeyFile
from .settings import Settings, is_loopback

TICKET_SECONDS = 30
"""For which a ticket is valid."""
TOKEN = "token"
"""Name of the server's token, where names of keys are shown."""


@dataclass(frozen=True)
class _Identity:
    """Attributes: name. scopes."""

    name: str
    scopes: tuple[str, ...] = SCOPES


class Access:
    """Decides about requests.

    Args:
        now: seconds since the epoch.

    Raises:
        ConfigError: the file of keys cannot be read.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self._settings, self._now = settings, now
        self._keys = KeyFile(Path(settings.keys)) if settings.keys else None
        self._secret = settings.token.encode() or secrets.token_bytes(32)  # nothing that is in the file of keys
        self._anybody = _Identity("")
        self._used: dict[str, float] = {}  # tickets, and when they expire

    def ticket(self, name: str) -> str:
        """A new ticket for a key's name, "token" or ""; of characters that an address may have."""
        identity = self._named(name) or self._anybody
        text = f"{self._now() + TICKET_SECONDS:.0f}.{secrets.token_hex(8)}.{identity.name}"
        return f"{text}.{self._signature(text)}"

    def check(self, request: HTTPConnection, scope: str = "session", *, ticket: bool = False) -> str:
        """Check a request's key and origin; returns the key's name, "token", or "" where none is needed.

        Args:
            scope: that the key must have. ticket: whether a ticket in the query `ticket`, which is used up, may replace
                the key.

        Raises:
            TokenError, ScopeError, OriginError.
        """
        identity = self._bearer(request.headers.get("authorization", ""))
        if identity is None and ticket:
            identity = self._use(request.query_params.get("ticket", ""))
        if identity is None:
            raise TokenError(
                "the token, key or ticket is missing, wrong, expired or used up",
                expected="the header Authorization: Bearer TOKEN; for a WebSocket also ?ticket=TICKET",
                fix="send the token in the header; POST /v1/tickets gives a ticket for one WebSocket",
            )
        if scope not in identity.scopes:
            raise ScopeError(
                f"the key {identity.name} is not for this",
                expected=f"a key with the scope {scope}",
                fix=f"ask the operator for one: lipstream key new NAME --scope {scope}",
            )
        if not self._is_allowed(request.headers.get("origin"), request.headers.get("host", "")):
            raise OriginError(
                "this page's origin is not allowed", fix="start the server with --origin and the page's origin"
            )
        return identity.name

    def holds(self, name: str) -> bool:
        """Whether the key that `check` named is still valid."""
        return self._named(name) is not None

    def _bearer(self, header: str) -> _Identity | None:
        """Whose token or key a header has."""
        if not self._settings.token and self._keys is None:
            return self._anybody
        kind, _, given = header.partition(" ")
        if kind != "Bearer":
            return None
        token = self._settings.token
        if token and hmac.compare_digest(given.encode(), token.encode()):
            return self._named(TOKEN)
        return self._valid(self._keys.find(given)) if self._keys else None

    def _named(self, name: str) -> _Identity | None:
        if name == TOKEN and self._settings.token:
            return _Identity(TOKEN)
        if name == self._anybody.name:
            return None if self._settings.token or self._keys else self._anybody
        return self._valid(self._keys.named(name)) if self._keys else None

    def _valid(self, key: Key | None) -> _Identity | None:
        if key is None or key.expired(self._now()):
            return None
        return _Identity(key.name, key.scopes)

    def _use(self, ticket: str) -> _Identity | None:
        now = self._now()
        self._used = {used: until for used, until in self._used.items() if until > now}
        text, _, signature = ticket.rpartition(".")
        until, _, rest = text.partition(".")
        identity = self._named(rest.partition(".")[2])
        if identity is None or ticket in self._used:
            return None
        if not hmac.compare_digest(signature.encode(), self._signature(text).encode()):
            return None
        self._used[ticket] = float(until)
        return identity if float(until) > now else None

    def _signature(self, text: str) -> str:
        return hmac.digest(self._secret, b"ticket " + text.encode(), "sha256").hex()

    def _is_allowed(self, origin: str | None, host: str) -> bool:
        """Programs send no origin; a page's must be this server's own, or one of the settings'."""
        if origin is None or origin in self._settings.origins:
            return True
        try:
            page = urlsplit(origin)
        except ValueError:  # such as an open bracket
            return False
        return page.netloc == host and (self._settings.authenticates or is_loopback(page.hostname or ""))
