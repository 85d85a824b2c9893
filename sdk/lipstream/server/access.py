"""Who may use the server: tokens, one-time tickets for WebSockets, origins of pages.

Browsers cannot set headers on a WebSocket, and addresses are written to logs: so a page sends its token in a header to
get a ticket, and the ticket in the address. A ticket is signed with the token, so any replica with the same token
accepts it; that it is used once is checked by each replica for itself.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from ..errors import OriginError, TokenError
from .settings import Settings, is_loopback

TICKET_SECONDS = 30
"""For which a ticket is valid."""


class Access:
    """Decides about requests.

    Args:
        now: seconds since the epoch.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self._settings, self._now = settings, now
        self._key = (settings.token or secrets.token_hex()).encode()
        self._used: dict[str, float] = {}  # tickets, and when they expire

    def ticket(self) -> str:
        """A new ticket; characters that an address may have."""
        text = f"{self._now() + TICKET_SECONDS:.0f}.{secrets.token_hex(8)}"
        return f"{text}.{self._signature(text)}"

    def check(self, request: HTTPConnection, *, ticket: bool = False) -> None:
        """Check a request's token and origin.

        Args:
            ticket: whether a ticket in the query `ticket`, which is used up, may replace the token.

        Raises:
            TokenError, OriginError.
        """
        given = request.headers.get("authorization", "").encode()
        if (
            self._settings.token
            and not hmac.compare_digest(given, f"Bearer {self._settings.token}".encode())
            and not (ticket and self._use(request.query_params.get("ticket", "")))
        ):
            raise TokenError(
                "the token, or the ticket, is missing, wrong or used up",
                expected="the header Authorization: Bearer TOKEN; for a WebSocket also ?ticket=TICKET",
                fix="send the token in the header; POST /v1/tickets gives a ticket for one WebSocket",
            )
        if not self._is_allowed(request.headers.get("origin"), request.headers.get("host", "")):
            raise OriginError(
                "this page's origin is not allowed", fix="start the server with --origin and the page's origin"
            )

    def _use(self, ticket: str) -> bool:
        now = self._now()
        self._used = {used: until for used, until in self._used.items() if until > now}
        text, _, signature = ticket.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(text).encode()) or ticket in self._used:
            return False
        until = float(text.partition(".")[0])
        self._used[ticket] = until
        return until > now

    def _signature(self, text: str) -> str:
        return hmac.digest(self._key, b"ticket " + text.encode(), "sha256").hex()

    def _is_allowed(self, origin: str | None, host: str) -> bool:
        """Programs send no origin; a page's must be this server's own, or one of the settings'."""
        if origin is None or origin in self._settings.origins:
            return True
        page = urlsplit(origin)
        return page.netloc == host and (bool(self._settings.token) or is_loopback(page.hostname or ""))
