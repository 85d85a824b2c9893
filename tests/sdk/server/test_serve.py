"""`lipstream serve` as a process that cannot serve; unexpected errors; a path behind a proxy."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client_and_server import Served
from lipstream import LipSyncEngine
from lipstream.bundle.keys import new_key
from lipstream.errors import BundleNotFoundError, BundleUntrustedError, ConfigError
from lipstream.server.app import create_app
from lipstream.server.settings import Settings
from starlette.testclient import TestClient
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.server_client import Client


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lipstream", "serve", "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def failed(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)["error"]["code"]


def test_an_engine_that_does_not_load_ends_the_server() -> None:
    assert failed(serve("--port", "0", "--bundle", "nope")) == (BundleNotFoundError.exit_code, "bundle_not_found")


def test_a_bundle_that_is_not_trusted_is_not_served(tiny: Path, tmp_path: Path) -> None:
    public, _ = new_key(tmp_path / "key.pem")
    shutil.copytree(tiny, tmp_path / "copy")
    done = serve("--port", "0", "--bundle", str(tmp_path / "copy"), "--trust", str(public))
    assert failed(done) == (BundleUntrustedError.exit_code, "bundle_untrusted")


@pytest.mark.parametrize("option", [("--port", "22222222"), ("--port", "-1"), ("--host", "192.0.2.1", "--token", "s")])
def test_an_address_that_cannot_be_listened_at(option: tuple[str, ...]) -> None:
    done = serve(*option)
    assert failed(done) == (ConfigError.exit_code, "config")
    assert "open http" not in done.stderr


def test_a_taken_port_is_reported_before_an_address_is_printed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve("--port", str(taken.getsockname()[1]))
    assert failed(done) == (ConfigError.exit_code, "config")
    assert "open http" not in done.stderr


BROKEN = '''
"""Fails where no error is expected."""
from lipstream.server.references import References
from lipstream.server.realtime_session import RealtimeSession

def upload(*_):
    raise ZeroDivisionError("in /srv/secret/place.py")

References.upload = upload
RealtimeSession.flush = upload
'''


def test_an_unexpected_error_is_typed_and_the_server_stays_up(
    start_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class Break(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'lipstream.server.command':\n"
        "            sys.meta_path.remove(self)\n"
        f"            exec({BROKEN!r}, {{}})\n"
        "sys.meta_path.insert(0, Break())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def talk(server: Served) -> str:
        client = await Client.open(server)
        await client.say("flush")
        await client.until(lambda h: "error" in h.types())
        error = client.received.said[-1]
        assert (error["code"], error["fatal"]) == ("internal", True)
        assert "secret" not in json.dumps(error)
        with pytest.raises(ConnectionClosed) as closed:
            await client.until(lambda h: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        return str(error["id"])

    with start_server("--max-sessions", "1") as server:
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v1/references", b"x", timeout=10)
        body = raised.value.read().decode()
        error = json.loads(body)
        assert raised.value.code == 500
        assert set(error) >= {"type", "code", "message", "expected", "fix", "fatal"}
        assert error["code"] == "internal"
        assert not re.search(r"secret|Traceback|ZeroDivision", body)
        identifiers = [error["id"], asyncio.run(talk(server))]
        assert json.loads(server.get("/v1/health/ready")) == {"status": "ready"}
        log = server.log.read_text()
        assert log.count("ZeroDivisionError: in /srv/secret/place.py") == 2
        assert all(f"unexpected error {identifier}\nTraceback" in log for identifier in identifiers)


def test_garbage_does_not_fill_the_log(start_server: Callable[..., Any]) -> None:
    with start_server("--max-sessions", "1") as server:
        for _ in range(1500):
            with socket.create_connection(("127.0.0.1", server.port), 10) as client:
                client.sendall(b"garbage\r\n\r\n")
                assert b" 400 " in client.recv(100)
        log = server.log.read_text()
    assert "Invalid HTTP request received." in log
    assert log.count("Invalid HTTP request received.") < 1000


def test_a_path_behind_a_proxy(start_server: Callable[..., Any]) -> None:
    async def talk(server: Served, path: str) -> str:
        async with connect(f"ws://127.0.0.1:{server.port}{path}/v1/session") as socket:
            return str(json.loads(await socket.recv())["type"])

    with start_server("--max-sessions", "1", "--root-path", "/lips") as server:
        for path in ("", "/lips"):  # a proxy that removes the path, and one that does not
            assert '<base href="/lips/">' in server.get(f"{path}/")
            assert json.loads(server.get(f"{path}/v1/version"))["protocol"] == 1
            assert asyncio.run(talk(server, path)) == "hello"
        assert "Warning" not in server.log.read_text()


def test_as_many_sessions_as_may_be_open_are_warm_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed = []
    monkeypatch.setattr(LipSyncEngine, "warmup", lambda self, **options: warmed.append(options))
    with TestClient(create_app(Settings(max_sessions=3)), base_url="http://localhost") as client:
        while client.get("/v1/health/ready").status_code != 200:
            time.sleep(0.05)
    assert warmed == [{"sessions": 3}]
