"""The command `lipstream-train` reports results and errors as `lipstream` does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from lipstream.errors import ConfigError
from lipstream_training.cli import main
from lipstream_training.distil import plan


def test_results_are_printed_as_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0
    assert capsys.readouterr().out == plan.markdown("14b") + "\n"
    assert main(["plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == plan.table("14b")


def test_wrong_usage_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["fly"], ["distil", str(tmp_path)], ["study", str(tmp_path), "--seeds", "many"]):
        assert main([*args, "--json"]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("lipstream-train: ")
        assert json.loads(captured.out)["error"]["code"] == "usage"


def test_errors_have_their_own_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(tmp_path), "--vae", "vae.pth", "--json"]) == ConfigError.exit_code
    assert json.loads(capsys.readouterr().out)["error"]["exit_status"] == ConfigError.exit_code


def test_a_bug_is_status_70_and_ctrl_c_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(student: str) -> None:
        raise ZeroDivisionError(student)

    monkeypatch.setattr(plan, "table", broken)
    assert main(["plan"]) == 70
    assert "please report" in capsys.readouterr().err
    monkeypatch.setattr(plan, "table", lambda student: os.kill(os.getpid(), signal.SIGINT))
    assert main(["plan", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"
