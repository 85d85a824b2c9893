"""Honest clients beside hostile ones: a short run, and that the checks find what is missing, late or left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lipstream.server.protocol import IDLE, PCM, pack

from benchmarks import hostile
from benchmarks.common import main
from benchmarks.hostile_clients import kinds
from benchmarks.server_client import Received
from benchmarks.spoken_session import speech


class Socket:
    close_code = 1000


class Client:
    """Two utterances that came back, a frame each 40 ms from the time they were sent, `late` seconds late."""

    socket = Socket()

    def __init__(self, late: float = 0.0, damaged: int | None = None) -> None:
        self.received = Received()
        sound, rate = speech()
        size = rate // 25
        spoken = [*sound.reshape(-1, size)]
        frames = [*spoken, np.zeros(size, np.int16), *spoken]
        for index, frame in enumerate(frames):
            if index == damaged:
                frame = frame + 1
            flags = IDLE * (index == len(spoken))
            self.received.add(pack(PCM, flags, 0, index, size * index, frame.astype("<i2").tobytes()))
        self.received.arrived = [100 + late + index / 25 for index in range(len(frames))]


def honest(**options: Any) -> hostile.Honest:
    return hostile.Honest(Client(**options), said=[100, 105 + 1 / 25])  # type: ignore[arg-type]


def test_damaged_sound_and_late_frames_are_found() -> None:
    good, late = honest(), honest(late=0.3, damaged=200)
    assert good.faults() == []
    assert late.faults() == ["sound differs"]
    row = hostile.summary([good], 0, 1000)
    assert row["frames"] == 250
    assert row["pictures_share"] == 0
    assert abs(row["late_ms"]["p100"]) < 1e-3
    assert hostile.summary([late], 0, 1000)["late_ms"]["p99"] == pytest.approx(300)
    assert hostile.summary([late], 0, 100)["frames"] == 0


def test_a_client_that_was_cut_off_is_found() -> None:
    client = honest()
    client.fault = "cut off with 1008"
    assert "cut off with 1008" in client.faults()


def test_a_long_log_and_a_traceback_are_found() -> None:
    assert hostile.log_faults("refused\n" * 1400, seconds=50) == []
    assert len(hostile.log_faults("refused\n" * 1401, seconds=50)) == 1
    assert len(hostile.log_faults("x" * 10**6, seconds=50)) == 1
    assert len(hostile.log_faults("Traceback (most recent call last):\n", seconds=50)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_of_a_server_are_found() -> None:
    wait = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", f"{wait}; p.wait()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as helper:
        assert helper.stdout is not None
        helper.stdout.readline()
        (decoder,) = hostile.children(helper.pid)
        assert hostile.children(decoder) == []
        own, decoders = hostile.memory(helper.pid)
        assert own > 0
        assert decoders == 0
        helper.communicate(b"\n")
    assert hostile.children(helper.pid) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_honest_clients_beside_hostile_ones(tmp_path: Path) -> None:
    path = tmp_path / "hostile.json"
    options = hostile.build_parser().parse_args(["--quick", "--json", str(path)])
    assert main(hostile.run, options) == 0
    results = json.loads(path.read_text())["results"]
    assert set(results["hostile"]) == set(kinds())
    assert results["hostile"]["wrong tokens"]["401"] > 0
    assert results["honest"]["beside"]["frames"] > 0
