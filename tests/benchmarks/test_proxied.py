"""Benchmarks of the server. Behind nginx: its link loses what it should, and its checks find what is missing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lipstream.server.protocol import IDLE, PCM, pack

from benchmarks import overload, proxied
from benchmarks.common import main
from benchmarks.lossy_network import FAR, NEAR, available, lossy_network
from benchmarks.server_client import Received
from benchmarks.spoken_session import Session, check_sound, recognised

needs_root = pytest.mark.skipif(not available(), reason="needs root and /dev/net/tun")
SEND = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
    far.bind(("{FAR}", 9))
    for number in range(100):
        far.sendto(bytes([number]), ("{NEAR}", 9))
"""


def arrived(loss: float) -> list[int]:
    """Numbers of the datagrams, of 100, that come through."""
    with lossy_network(0.02, 0.01, loss) as network, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.bind((NEAR, 9))
        near.settimeout(1)
        subprocess.run([*network.far, sys.executable, "-c", SEND], check=True)
        found = []
        try:
            while True:
                found.append(near.recv(10)[0])
        except TimeoutError:
            return found


@needs_root
def test_packets_keep_their_order_and_some_are_lost() -> None:
    assert arrived(0) == list(range(100))
    found = arrived(0.3)
    assert found == sorted(set(found))
    assert 50 <= len(found) <= 90


def received(sound: np.ndarray, lost: int | None = None) -> Received:
    """Two idle frames and the sound, at 16000 Hz; without the frame `lost`."""
    found = Received()
    frames = [np.zeros(640, np.int16)] * 2 + [*sound.reshape(-1, 640)]
    for index, frame in enumerate(frames):
        if index != lost:
            found.add(pack(PCM, IDLE if index < 2 else 0, 0, index, 640 * index, frame.astype("<i2").tobytes()))
    return found


def test_lost_sound_is_found() -> None:
    sound = np.random.default_rng(0).integers(-9000, 9000, 6400).astype(np.int16)
    for lost, faults in ((None, []), (5, ["the clock has a gap", "sound differs"])):
        session = Session("WebSocket", False)
        check_sound(session, received(sound, lost), [sound], 16_000)
        assert session.faults == faults


def test_sound_that_comes_back_in_part() -> None:
    sound = np.random.default_rng(0).normal(size=4 * 48_000).repeat(8)[: 4 * 48_000] * 3000
    silence = np.zeros(20_000)
    assert recognised(sound, np.concatenate([silence, sound, silence])) == 1
    assert recognised(sound, np.concatenate([silence, sound[: 2 * 48_000], silence])) == 0.5
    assert recognised(sound, np.concatenate([sound[2 * 48_000 :], sound[: 2 * 48_000]])) < 1, "another order"


def test_nginx_is_configured_as_shipped(tmp_path: Path) -> None:
    shipped = proxied.shipped_configuration(tmp_path)
    for needed in ("proxy_buffering off", "X-Forwarded-Proto $scheme", "Upgrade $http_upgrade", "Host $http_host"):
        assert needed in shipped
    assert "/etc/" not in shipped.partition("listen")[2]
    assert "$request " not in shipped.partition("log_format")[2].partition(";")[0]  # it has queries, with tickets


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
def test_nginx_takes_the_shipped_configuration(tmp_path: Path) -> None:
    names = ["-keyout", "key.pem", "-out", "certificate.pem", "-nodes", "-subj", "/CN=x", "-newkey", "rsa:2048"]
    subprocess.run(["openssl", "req", "-x509", *names], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "lipstream.conf").write_text(proxied.shipped_configuration(tmp_path))
    (tmp_path / "nginx.conf").write_text(proxied.NGINX.format(folder=tmp_path))
    command = ["nginx", "-t", "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "errors.log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@needs_root
@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
def test_sessions_of_every_kind_behind_nginx(tmp_path: Path) -> None:
    """Without loss, so that nothing depends on the speed of the machine but what is late."""
    path = tmp_path / "proxied.json"
    options = proxied.build_parser().parse_args(["--quick", "--loss", "0", "--json", str(path)])
    assert main(proxied.run, options) == 0
    results = json.loads(path.read_text())["results"]
    assert {kind: row["failed"] for kind, row in results["sessions"].items()} == {
        f"{transport}, {codec}": 0
        for transport, codec in (("WebRTC", "h264"), ("WebRTC", "vp8"), ("WebSocket", "h264"), ("WebSocket", "jpeg"))
    }
    assert results["packets"]["sent"] > 1000
    assert results["server"]["sessions_closed"] == results["server"]["sessions_opened"] == 4


@pytest.mark.slow
def test_a_server_recovers_from_an_overload(tmp_path: Path) -> None:
    path = tmp_path / "overload.json"
    options = overload.build_parser().parse_args(["--quick", "--json", str(path)])
    assert main(overload.run, options) == 0
    phases = json.loads(path.read_text())["results"]["phases"]
    assert phases["quiet"]["pictures_share"] == 1
    assert phases["quiet"]["ready_share"] == 1
