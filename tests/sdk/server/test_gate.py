"""The gate: what is refused before a body is read, and what all answers have. Through the application itself."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lipstream.errors import ConfigError, SlowClientError
from lipstream.server import gate
from lipstream.server.app import create_app, drain
from lipstream.server.pace import AT_ONCE, SHARE, Pace
from lipstream.server.rate import LogBudget, TokenBuckets
from lipstream.server.settings import Settings
from lipstream.session.in_progress import in_progress

TOKEN = "secret"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass
class Answer:
    """Attributes: status. headers. body. read: bytes of the request's body that the server took."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    read: int = 0

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


async def asked(
    app: Any,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    *,
    chunks: int = 0,
    chunk: bytes = b"x" * 65536,
    client: str = "10.0.0.1",
    pause: float = 0.0,
) -> Answer:
    """One request, whose body has `chunks` pieces, each after a `pause` in seconds; -1 for one without end."""
    found, sent = Answer(), 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        await asyncio.sleep(pause)
        if sent == chunks:
            return {"type": "http.request", "body": b"", "more_body": False}
        sent += 1
        found.read += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": sent != chunks}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found.status = message["status"]
            found.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            found.body += message.get("body", b"")

    given = {"host": "localhost", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": (client, 1),
        "server": ("localhost", 80),
    }
    await asyncio.wait_for(app(scope, receive, send), 20)
    return found


def ask(*arguments: Any, **options: Any) -> Answer:
    """See `asked`."""
    return asyncio.run(asked(*arguments, **options))


@pytest.fixture
def app() -> Any:
    return create_app(Settings(token=TOKEN, requests_per_second=1000))


@pytest.mark.parametrize("path", ["/v1/webrtc", "/v1/references", "/v1/tickets", "/v1/nothing"])
def test_without_the_token_no_byte_of_a_body_is_read(app: Any, path: str) -> None:
    found = ask(app, "POST", path, chunks=-1)
    assert (found.status, found.code, found.read) == (401, "token", 0)
    assert found.headers["connection"] == "close"


def test_a_body_without_end_is_read_up_to_the_limit(app: Any) -> None:
    found = ask(app, "POST", "/v1/webrtc", BEARER, chunks=-1)
    assert (found.status, found.code) == (413, "upload_too_large")
    assert gate.SMALL < found.read <= gate.SMALL + 65536


def test_a_declared_length_beyond_the_limit_is_refused_unread(app: Any) -> None:
    for path, length in (("/v1/webrtc", gate.SMALL + 1), ("/v1/references", (64 << 20) + 1)):
        found = ask(app, "POST", path, BEARER | {"content-length": str(length)}, chunks=-1)
        assert (found.status, found.read) == (413, 0)


def test_a_body_that_does_not_come_is_not_waited_for(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "GRACE", 0.05)
    found = ask(app, "POST", "/v1/webrtc", BEARER, chunks=1, pause=3600)
    assert (found.status, found.code) == (408, "slow_client")


def test_an_invalid_body_is_not_sent_back(app: Any) -> None:
    body = json.dumps({"sdp": "x" * 300_000, "type": "offer", "start": {"type": "start", "y": "z" * 90_000}}).encode()
    found = ask(app, "POST", "/v1/webrtc", BEARER | {"content-type": "application/json"}, chunks=1, chunk=body)
    assert (found.status, found.code) == (422, "protocol")
    assert len(found.body) < 1000


def test_unknown_paths_are_found_out_with_the_token_only(app: Any) -> None:
    assert ask(app, "GET", "/v1/nothing").status == 401
    assert ask(app, "GET", "/v1/nothing", BEARER).status == 404


def test_metrics_version_and_openapi_are_private_by_option(app: Any) -> None:
    private = create_app(Settings(token=TOKEN, private=True))
    for path in ("/v1/metrics", "/v1/version", "/openapi.json"):
        assert ask(app, "GET", path).status == 200
        assert ask(private, "GET", path).status == 401
        assert ask(private, "GET", path, BEARER).status == 200
    assert ask(private, "GET", "/v1/health/live").status == 200


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        (Settings(), "localhost:8000", 200),
        (Settings(), "[::1]:8000", 200),
        (Settings(), "evil.example", 403),  # a page whose name was bound anew to this machine
        (Settings(), "", 403),
        (Settings(token=TOKEN), "any.example", 200),
        (Settings(token=TOKEN, hosts=("lips.example",)), "lips.example:443", 200),
        (Settings(token=TOKEN, hosts=("lips.example",)), "other.example", 403),
        (Settings(token=TOKEN, hosts=("lips.example",)), "127.0.0.1", 200),
    ],
)
def test_hosts(settings: Settings, host: str, status: int) -> None:
    found = ask(create_app(settings), "GET", "/v1/version", {"host": host})
    assert found.status == status
    assert status == 200 or found.code == "host"


def test_too_many_requests_of_one_address(app: Any) -> None:
    app = create_app(Settings(token=TOKEN, requests_per_second=0.001))
    answers = [ask(app, "GET", "/v1/ice", BEARER) for _ in range(3)]
    assert [found.status for found in answers] == [429] * 3  # a burst of four thousandths is none
    app = create_app(Settings(token=TOKEN, requests_per_second=1))
    statuses = [ask(app, "GET", "/v1/ice", BEARER).status for _ in range(8)]
    assert statuses.count(200) in (4, 5)
    assert statuses[-1] == 429
    assert ask(app, "GET", "/v1/ice", BEARER, client="10.0.0.2").status == 200
    network = [ask(app, "GET", "/v1/ice", BEARER, client=f"2001:db8::{i}").status for i in range(1, 9)]
    assert network[-1] == 429  # one client of IPv6 has as many addresses as it likes
    assert ask(app, "GET", "/v1/health/live").status == 200  # a supervisor is not refused


def test_guessing_tokens_is_slowed_down(app: Any) -> None:
    statuses = [ask(app, "POST", "/v1/tickets", {"authorization": f"Bearer {i}"}).status for i in range(40)]
    assert statuses[: gate.FAILURES] == [401] * gate.FAILURES
    assert statuses[-1] == 429
    assert ask(app, "POST", "/v1/tickets", BEARER).status == 200  # of the same address, with the token


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/", {}, 200), ("/v1/health/live", {}, 200), ("/v1/tickets", {}, 401), ("/x", BEARER, 404)],
)
def test_all_answers_have_the_security_headers(app: Any, path: str, headers: dict[str, str], status: int) -> None:
    found = ask(app, "GET", path, headers)
    assert found.status == status
    assert {name.lower() for name in gate.HEADERS} <= {*found.headers}
    assert "frame-ancestors 'none'" in found.headers["content-security-policy"]
    assert ("script-src" in found.headers["content-security-policy"]) == (path == "/")


def test_behind_a_path_the_same_is_open() -> None:
    app = create_app(Settings(token=TOKEN, root_path="/lips"))
    assert ask(app, "GET", "/lips/v1/health/live").status == 200
    assert ask(app, "POST", "/lips/v1/tickets").status == 401
    assert ask(app, "POST", "/lips/v1/tickets", BEARER).status == 200


def test_offers_at_once_do_not_pass_the_limit() -> None:
    """The place is taken before anything is waited for."""
    app = create_app(Settings(token=TOKEN, requests_per_second=1000))
    state = app.state.lipstream
    state.most = 1
    waiting: list[asyncio.Event] = []

    class Slow:
        async def get(self, name: str) -> None:
            waiting.append(event := asyncio.Event())
            await event.wait()

    state.references = Slow()
    body = json.dumps({"sdp": "v=0", "type": "offer", "start": {"type": "start"}}).encode()

    async def all_at_once() -> list[int]:
        given = BEARER | {"content-type": "application/json"}
        offers = [
            asyncio.ensure_future(asked(app, "POST", "/v1/webrtc", given, chunks=1, chunk=body)) for _ in range(20)
        ]
        while sum(offer.done() for offer in offers) < 19:
            await asyncio.sleep(0.01)
        assert len(waiting) == 1
        waiting[0].set()
        return [(await offer).status for offer in offers]

    statuses = asyncio.run(asyncio.wait_for(all_at_once(), 20))
    assert sorted(statuses) == [422, *[503] * 19]  # the one that was admitted has no valid SDP
    assert not state.places, "its place is free again"


def test_token_buckets() -> None:
    now = 0.0
    buckets = TokenBuckets(2, 3, lambda: now)
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b")
    now = 0.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    now = 100
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    for i in range(10_000):
        buckets.take(str(i))
    assert len(buckets._buckets) <= 4096


def test_a_flood_of_lines_is_cut_and_counted() -> None:
    budget = LogBudget(rate=1000, burst=5)
    lines = [logging.LogRecord("a", logging.INFO, "", 0, "line %d", (i,), None) for i in range(100)]
    kept = [line.getMessage() for line in lines if budget.filter(line)]
    assert 5 <= len(kept) < 50
    budget._buckets.take = lambda key: True  # type: ignore[method-assign]
    last = logging.LogRecord("a", logging.INFO, "", 0, "last", (), None)
    assert budget.filter(last)
    assert "lines left out" in last.getMessage()


def test_a_client_whose_messages_take_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    used = now = 0.0
    slept: list[float] = []
    monkeypatch.setattr("lipstream.server.pace.time.thread_time", lambda: used)
    monkeypatch.setattr("lipstream.server.pace.time.monotonic", lambda: now)

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    monkeypatch.setattr("lipstream.server.pace.asyncio.sleep", sleep)
    pace = Pace()

    async def client() -> None:
        nonlocal used
        for _ in range(100):
            await pace.wait()
            with pace.handling():
                used += 0.1

    asyncio.run(client())
    assert slept[:3] == [0, 0, 0]
    assert used - AT_ONCE - 0.1 <= SHARE * now <= used


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"host": "0.0.0.0", "token": TOKEN}, "without TLS"),
        ({"tls_cert": "a.pem"}, "without its"),
        ({"tls_cert": "missing.pem", "tls_key": "missing.pem"}, "cannot be read"),
        ({"max_sessions": -1}, "max_sessions -1"),
        ({"max_sessions": 10**9}, "max_sessions"),
        ({"drain": float("nan")}, "drain nan"),
        ({"idle_limit": float("inf")}, "idle_limit inf"),
        ({"requests_per_second": 0}, "requests_per_second 0"),
        ({"most_connections": 1}, "most_connections 1"),
    ],
)
def test_settings_that_cannot_work(given: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Settings(**given)


@pytest.mark.parametrize("path", ["/v1/references\n", "/v1/metrics\n", "//v1/references", "/v1//tickets", "/v1/x\x00"])
def test_addresses_that_routing_would_take_for_others(path: str) -> None:
    """Scope and size are decided by the path."""
    app = create_app(Settings(token=TOKEN, private=True))
    for headers in ({}, BEARER):
        found = ask(app, "POST", path, headers, chunks=-1)
        assert (found.status, found.read) == (422, 0)


@pytest.mark.parametrize("wrong", [{"host": "["}, {"host": "]:["}, {"origin": "http://["}])
def test_headers_that_are_no_addresses_are_refused(wrong: dict[str, str]) -> None:
    for settings in (Settings(), Settings(token=TOKEN, hosts=("a.example",))):
        assert ask(create_app(settings), "POST", "/v1/tickets", BEARER | wrong).status == 403


@pytest.mark.parametrize("root", ["/lips/", "/"])
def test_a_root_path_may_end_with_a_slash(root: str) -> None:
    app = create_app(Settings(token=TOKEN, root_path=root))
    assert ask(app, "GET", f"{root}v1/health/live").status == 200
    assert ask(app, "POST", f"{root}v1/tickets").status == 401
    assert ask(app, "POST", f"{root}v1/tickets", BEARER).status == 200


def test_draining_does_not_stop_at_a_client_that_does_not_read() -> None:
    state = create_app(Settings()).state.lipstream

    class Full:
        def send_message(self, message: dict[str, Any]) -> None:
            raise SlowClientError("full")

    state.live["a"] = Full()

    async def end() -> None:
        ending = asyncio.ensure_future(drain(state))
        await asyncio.sleep(0.1)
        state.live.clear()
        await ending

    asyncio.run(asyncio.wait_for(end(), 5))
    assert state.draining


def test_refusals_do_not_fill_the_audit_log(tmp_path: Path) -> None:
    log = tmp_path / "audit"
    app = create_app(Settings(token=TOKEN, audit=str(log), requests_per_second=1000))
    for _ in range(400):
        ask(app, "POST", "/v1/tickets")
    assert len(log.read_text().splitlines()) < 200


def test_a_chunk_that_does_not_end_is_told_to_the_supervisor(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(app, "GET", "/v1/health/live").status == 200
    with in_progress():
        assert ask(app, "GET", "/v1/health/live").status == 200
        monkeypatch.setattr("lipstream.server.app.STUCK", -1.0)
        assert ask(app, "GET", "/v1/health/live").status == 503
    monkeypatch.setattr("lipstream.server.app.STUCK", 0.0)
    assert ask(app, "GET", "/v1/health/live").status == 200
