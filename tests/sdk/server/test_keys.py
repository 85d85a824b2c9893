"""API keys and the audit log: scopes, ends, tickets of several replicas, and changes while the server runs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from lipstream.atomic import exclusively
from lipstream.errors import ConfigError, ScopeError, TokenError
from lipstream.server import client_session
from lipstream.server.access import Access
from lipstream.server.app import create_app
from lipstream.server.audit import Who
from lipstream.server.client_session import ClientSession
from lipstream.server.keys import Key, new_key, read_keys, write_keys
from lipstream.server.settings import Settings
from test_access import request
from test_gate import ask


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(file: Path, name: str, *scopes: str, expires: datetime | None = None) -> str:
    secret, key = new_key(name, scopes or ("session", "upload"), expires)
    write_keys(file, [*(read_keys(file) if file.exists() else []), key])
    return secret


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_a_key_is_kept_as_its_hash_alone(file: Path) -> None:
    secret = add(file, "crm")
    assert secret not in file.read_text()
    assert hashlib.sha256(secret.encode()).hexdigest() in file.read_text()


def test_scopes_decide_what_a_key_is_for(file: Path) -> None:
    secret = add(file, "crm", "session")
    other = add(file, "studio", "upload", "metrics")
    app = create_app(Settings(keys=str(file), private=True, requests_per_second=1000))
    assert ask(app, "POST", "/v1/tickets", bearer(secret)).status == 200
    found = ask(app, "POST", "/v1/references", bearer(secret), chunks=-1)
    assert (found.status, found.code, found.read) == (403, "scope", 0)
    assert ask(app, "GET", "/v1/metrics", bearer(secret)).status == 403
    assert ask(app, "GET", "/v1/metrics", bearer(other)).status == 200
    assert ask(app, "POST", "/v1/tickets", bearer(other)).status == 403
    assert ask(app, "POST", "/v1/tickets", bearer("guessed")).status == 401
    assert ask(app, "POST", "/v1/tickets").status == 401


def test_a_key_ends(file: Path) -> None:
    now = datetime.now(UTC)
    secret = add(file, "crm", expires=now + timedelta(hours=1))
    clock = [now.timestamp()]
    access = Access(Settings(keys=str(file)), now=lambda: clock[0])
    assert access.check(request(authorization=f"Bearer {secret}")) == "crm"
    ticket = access.ticket("crm")
    clock[0] += 3601
    for given in (request(authorization=f"Bearer {secret}"), request(f"ticket={ticket}")):
        with pytest.raises(TokenError):
            access.check(given, ticket=True)


def test_keys_change_while_the_server_runs(file: Path) -> None:
    first = add(file, "first")
    access = Access(Settings(keys=str(file)))
    second = add(file, "second")
    assert access.check(request(authorization=f"Bearer {second}")) == "second"
    ticket = access.ticket("first")
    write_keys(file, [key for key in read_keys(file) if key.name != "first"])
    for given in (request(authorization=f"Bearer {first}"), request(f"ticket={ticket}")):
        with pytest.raises(TokenError):
            access.check(given, ticket=True)
    file.write_text("half of a fi")  # the keys that were read last still hold
    assert access.check(request(authorization=f"Bearer {second}")) == "second"
    file.unlink()
    assert access.check(request(authorization=f"Bearer {second}")) == "second"


def test_a_ticket_is_its_keys_and_replicas_with_the_same_token_take_it(file: Path, tmp_path: Path) -> None:
    add(file, "crm", "session")
    add(file, "studio", "upload")
    one, two = (Access(Settings(keys=str(file), token="t")) for _ in range(2))
    ticket = one.ticket("crm")
    assert two.check(request(f"ticket={ticket}"), ticket=True) == "crm"
    with pytest.raises(ScopeError):
        one.check(request(f"ticket={one.ticket('studio')}"), ticket=True)
    alone = Access(Settings(keys=str(file)))
    assert alone.check(request(f"ticket={alone.ticket('crm')}"), ticket=True) == "crm"
    text, _, _ = alone.ticket("crm").rpartition(".")
    of_the_file = hmac.digest(bytes.fromhex(read_keys(file)[0].sha256), b"ticket " + text.encode(), "sha256").hex()
    forged = [one.ticket("studio").replace("studio", "crm"), f"{text}.{of_the_file}", one.ticket("crm")]
    for wrong in (*forged, "", ".", "..", "...", "9999999999.a.crm.b", f"nan.a.crm.{'0' * 64}"):
        with pytest.raises(TokenError):
            alone.check(request(f"ticket={wrong}"), ticket=True)
    assert file.stat().st_mode & 0o77 == 0


def test_the_token_is_valid_beside_keys(file: Path) -> None:
    secret = add(file, "crm")
    access = Access(Settings(keys=str(file), token="t"))
    assert access.check(request(authorization="Bearer t"), "metrics") == "token"
    assert access.check(request(authorization=f"Bearer {secret}")) == "crm"
    assert access.check(request(f"ticket={access.ticket('token')}"), ticket=True) == "token"


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "a b", "sha256": "0" * 64},
        {"name": "token", "sha256": "0" * 64},
        {"name": "a", "sha256": "secret"},
        {"name": "a", "sha256": "0" * 64, "scopes": ["everything"]},
        {"name": "a", "sha256": "0" * 64, "scopes": []},
        {"name": "a", "sha256": "0" * 64, "expires": "soon"},
        {"name": "a", "sha256": "0" * 64, "expires": "2027-01-01T00:00"},  # of which zone?
        {"name": "a", "sha256": "0" * 64, "admin": True},
        {"name": 1, "sha256": "0" * 64},
        "key",
    ],
)
def test_files_that_are_none_of_keys(file: Path, entry: Any) -> None:
    file.write_text(json.dumps({"keys": [entry]}))
    with pytest.raises(ConfigError):
        create_app(Settings(keys=str(file)))


def test_two_keys_of_one_name_and_a_missing_file(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        create_app(Settings(keys=str(file)))
    write_keys(file, [Key("a", "0" * 64), Key("a", "1" * 64)])
    with pytest.raises(ConfigError, match="two keys of one name"):
        create_app(Settings(keys=str(file)))


def test_the_audit_log_has_who_did_what_and_no_secret(file: Path, tmp_path: Path) -> None:
    secret = add(file, "crm", "session")
    log = tmp_path / "audit.jsonl"
    app = create_app(Settings(keys=str(file), audit=str(log)))
    ask(app, "POST", "/v1/references", bearer(secret))
    ask(app, "POST", "/v1/tickets", bearer("guessed"), client="10.0.0.9")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(x["event"], x["code"], x["path"], x["address"]) for x in lines] == [
        ("refused", "scope", "/v1/references", "10.0.0.1"),
        ("refused", "token", "/v1/tickets", "10.0.0.9"),
    ]
    assert datetime.fromisoformat(lines[0]["time"]).tzinfo is not None
    assert secret not in log.read_text()
    assert "guessed" not in log.read_text()
    assert log.stat().st_mode & 0o77 == 0
    os.symlink(log, tmp_path / "link")
    with pytest.raises(ConfigError, match="audit log"):
        create_app(Settings(audit=str(tmp_path / "link")))


def test_the_command(file: Path) -> None:
    def key(*arguments: str, status: int = 0) -> dict[str, Any]:
        command = [sys.executable, "-m", "lipstream", "key", *arguments, "--file", str(file), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        return dict(json.loads(done.stdout))

    made = key("new", "crm", "--scope", "session", "--days", "30")
    assert Access(Settings(keys=str(file))).check(request(authorization=f"Bearer {made['key']}")) == "crm"
    assert key("list")["keys"] == [{"name": "crm", "scopes": ["session"], "expires": made["expires"]}]
    assert key("new", "crm", status=3)["error"]["code"] == "config"
    assert key("remove", "nobody", status=3)["error"]["code"] == "config"
    key("remove", "crm")
    assert key("list")["keys"] == []


def test_a_session_ends_when_its_key_does(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_session, "KEY_SECONDS", 0.02)
    add(file, "crm")

    class Live:
        last_audio_at = time.monotonic()

    async def session() -> tuple[int, str]:
        state = create_app(Settings(keys=str(file))).state.lipstream
        client, live = ClientSession(state, cast(Any, None), Who("crm")), cast(Any, Live())
        limits = asyncio.ensure_future(client._limits(live))
        await asyncio.sleep(0.1)
        assert not limits.done()
        write_keys(file, [])
        return await asyncio.wait_for(limits, 5)

    assert asyncio.run(session()) == (1008, "the key is not valid any more")


def test_commands_at_once_lose_no_key(file: Path) -> None:
    command = [sys.executable, "-m", "lipstream", "key", "new"]
    running = [subprocess.Popen([*command, f"key-{i}", "--file", str(file)], stdout=subprocess.PIPE) for i in range(6)]
    for process in running:
        process.communicate(timeout=60)
    assert [process.returncode for process in running] == [0] * 6
    assert {key.name for key in read_keys(file)} == {f"key-{i}" for i in range(6)}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_folder_that_stays_locked_is_an_error(tmp_path: Path) -> None:
    with (
        exclusively(tmp_path / "one"),
        pytest.raises(BlockingIOError),
        exclusively(tmp_path / "two", seconds=0.1),
    ):
        pass
    with exclusively(tmp_path / "two", seconds=0.1):
        pass
