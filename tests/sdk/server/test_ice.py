"""TURN servers and their credentials."""

from __future__ import annotations

import subprocess

import pytest
from lipstream.errors import ConfigError
from lipstream.server.app import create_app
from lipstream.server.ice import ice_servers
from lipstream.server.settings import Settings
from starlette.testclient import TestClient

SERVERS = ("stun:stun.example.com:3478", "turn:turn.example.com:3478?transport=tcp", "turns:turn.example.com")


def test_turn_servers_get_a_password_of_the_shared_secret() -> None:
    """As OpenSSL computes it: what a TURN server compares it with."""
    settings = Settings(ice_servers=SERVERS, turn_secret="north wind", total_limit=600)
    stun, *turn = ice_servers(settings, now=1_700_000_000.0)
    assert stun == {"urls": SERVERS[0]}
    command = "printf 1700000600 | openssl dgst -sha1 -hmac 'north wind' -binary | openssl base64"
    expected = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.strip()
    assert turn == [{"urls": url, "username": "1700000600", "credential": expected} for url in SERVERS[1:]]


def test_without_a_secret_there_are_addresses_only() -> None:
    assert ice_servers(Settings(ice_servers=SERVERS)) == [{"urls": url} for url in SERVERS]


@pytest.mark.parametrize("url", ["http://a", "turn:", "turn:user:password@host", "turn:a b"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="ICE server"):
        Settings(ice_servers=(url,))


def test_credentials_need_the_token() -> None:
    client = TestClient(create_app(Settings(ice_servers=SERVERS, turn_secret="s", token="t")))
    assert client.get("/v1/ice").status_code == 401
    assert "s" not in client.get("/v1/version").json().values()
    found = client.get("/v1/ice", headers={"Authorization": "Bearer t"}).json()["ice_servers"]
    assert [server["urls"] for server in found] == [*SERVERS]
    assert all("credential" in server for server in found[1:])
