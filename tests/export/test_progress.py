"""The bars of an export: each stage with its count, in order, and nothing where it shall be quiet."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from lipstream_export.command import export
from lipstream_export.progress import Stages
from lipstream_export.settings import Calibration
from toys import CONFIG, toy_parts

STAGES = ["load", "calibration", "ranges", "sensitivity", "reference", "graphs", "parity"]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_an_export_shows_its_stages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    source = tmp_path / "source"
    toy_parts(replace(CONFIG, latent_size=(4, 4), num_layers=2)).save(source)
    export(source, tmp_path / "out", precision="fp8", calibration=Calibration(chunks=1))
    shown = re.split(r"[\r\n]+", capsys.readouterr().err)
    found = [match for line in shown if (match := re.match(r"(\w+) .*?(\d+)/(\d+) \[", line))]
    assert list(dict.fromkeys(match[1] for match in found)) == STAGES
    for stage in STAGES:
        counts = [(int(match[2]), int(match[3])) for match in found if match[1] == stage]
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1]
    for stage, step in (
        ("sensitivity", "blocks.1.ffn.2"),
        ("reference", "audio_encoder in chunk"),
        ("graphs", "denoiser"),
    ):
        assert any(line.startswith(stage) and step in line for line in shown)


def test_quiet_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_a_terminal(monkeypatch)
    with Stages(quiet=True) as progress:
        progress("graphs", 1, 4, "denoiser")
        progress("parity", 0, 4)
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_is_not_shown_as_complete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    with suppress(ValueError), Stages() as progress:
        progress("graphs", 1, 4, "denoiser")
        raise ValueError
    shown = capsys.readouterr().err
    assert "1/4" in shown
    assert "4/4" not in shown
