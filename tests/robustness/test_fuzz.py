"""A few hundred random inputs of each kind that clients send; `python -m benchmarks fuzz` sends a hundred thousand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.common import main


def options(path: Path, inputs: int, seed: int) -> list[str]:
    return ["--inputs", str(inputs), "--seed", str(seed), "--json", str(path)]


def test_no_random_input_gets_more_than_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.json"
    assert main(fuzz.run, fuzz.build_parser().parse_args(options(path, 400, 7))) == 0
    results = json.loads(path.read_text())["results"]
    assert results["inputs"] == {"http": 280, "websocket": 50, "sdp": 24, "media": 16}
    assert {"200", "401", "404", "422"} <= {*results["outcomes"]["http"]}
    assert "200" in results["outcomes"]["sdp"]  # some are still valid
    assert "read" in results["outcomes"]["media"]


def test_an_internal_error_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("lipstream.server.transports.webrtc.checked", broken)
    assert not fuzz.run(fuzz.build_parser().parse_args(options(tmp_path / "fuzz.json", 20, 7)))
    assert "sdp 0 of seed 7: UnheldError: status 500" in capsys.readouterr().out


def test_the_seed_and_the_number_give_the_input_again() -> None:
    def inputs(seed: int) -> list[str]:
        return [fuzz.Fuzzer(seed, number).text("v=0\r\nm=audio 9\r\n") for number in range(20)]

    assert inputs(1) == inputs(1) != inputs(2)
    assert len({*inputs(1)}) > 10
