"""Tokens, tickets and origins, without a network."""

from __future__ import annotations

import pytest
from lipstream.errors import ConfigError, OriginError, TokenError
from lipstream.server.access import TICKET_SECONDS, Access
from lipstream.server.settings import Settings
from starlette.requests import HTTPConnection


def request(query: str = "", **headers: str) -> HTTPConnection:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw, "query_string": query.encode()})


def test_a_public_address_needs_a_token() -> None:
    with pytest.raises(ConfigError, match="token"):
        Settings(host="0.0.0.0")
    assert "secret" not in repr(Settings(host="0.0.0.0", token="secret", behind_proxy=True))


def test_tokens() -> None:
    access = Access(Settings(token="s"))
    access.check(request(authorization="Bearer s"))
    for wrong in (request(), request(authorization="Bearer x"), request(authorization="s"), request("token=s")):
        with pytest.raises(TokenError):
            access.check(wrong, ticket=True)
    Access(Settings()).check(request())


def test_a_ticket_is_used_once_and_expires() -> None:
    now = [1000.0]
    access = Access(Settings(token="s"), now=lambda: now[0])
    first, second = access.ticket("token"), access.ticket("token")
    with pytest.raises(TokenError):
        access.check(request(f"ticket={first}"))  # not where a header can be sent
    access.check(request(f"ticket={first}"), ticket=True)
    with pytest.raises(TokenError):
        access.check(request(f"ticket={first}"), ticket=True)
    now[0] += TICKET_SECONDS + 1
    with pytest.raises(TokenError):
        access.check(request(f"ticket={second}"), ticket=True)


@pytest.mark.parametrize("forged", ["", ".", "9999999999.00", "9999999999.00.00", "nan.00.é", "x" * 1000])
def test_forged_tickets_are_refused(forged: str) -> None:
    with pytest.raises(TokenError):
        Access(Settings(token="s")).check(request(f"ticket={forged}"), ticket=True)


def test_a_replica_with_the_same_token_accepts_a_ticket() -> None:
    ticket = Access(Settings(token="s")).ticket("token")
    Access(Settings(token="s")).check(request(f"ticket={ticket}"), ticket=True)
    with pytest.raises(TokenError):
        Access(Settings(token="t")).check(request(f"ticket={ticket}"), ticket=True)


@pytest.mark.parametrize(
    ("token", "origin", "host", "allowed"),
    [
        ("", "http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("", "http://evil.example", "127.0.0.1:8000", False),
        ("", "http://evil.example", "evil.example", False),  # a name that was pointed at this machine
        ("s", "https://a.example", "b.example", True),
        ("s", "https://b.example", "b.example", True),
        ("s", "https://c.example", "b.example", False),
    ],
)
def test_origins(token: str, origin: str, host: str, allowed: bool) -> None:
    access = Access(Settings(token=token, origins=("https://a.example",)))
    asked = request(origin=origin, host=host, authorization=f"Bearer {token}")
    if allowed:
        access.check(asked)
    else:
        with pytest.raises(OriginError):
            access.check(asked)
