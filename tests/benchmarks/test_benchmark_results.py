"""What all benchmarks share: result files, fresh processes, memory."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from lipstream.errors import ConfigError

from benchmarks.common import cores, in_fresh_process, main, memory_mib, parser, spread, write


def test_a_result_file_records_what_ran_without_paths(bundle: Path, tmp_path: Path) -> None:
    options = parser("test", "text")
    options.add_argument("--video", type=Path)
    path = tmp_path / "new" / "result.json"
    args = options.parse_args(["--bundle", str(bundle), "--video", str(tmp_path / "v.mp4"), "--json", str(path)])
    write(path, "test", args, {"a": 1 / 3, "b": [float("nan"), 2], "c": {"d": True, "e": "text"}})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_text()
    report = json.loads(text, parse_constant=refuse)
    assert report["results"] == {"a": 0.333333, "b": [None, 2], "c": {"d": True, "e": "text"}}
    assert report["options"] == {"bundle": "toy", "video": "v.mp4", "threads": args.threads, "quick": False}
    assert report["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert report["bundle_manifest_sha256"] == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert str(tmp_path) not in text
    assert str(bundle.parent) not in text
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_spread() -> None:
    assert spread([3, 1, 2, 10]) == {"median": 2.5, "min": 1, "max": 10, "n": 4}


def peak_after(mib: int) -> tuple[int, float]:
    block = np.ones(mib << 20, np.uint8)
    return os.getpid() * int(block[0]), memory_mib("VmHWM")


def test_peak_memory_of_a_fresh_process_excludes_other_processes() -> None:
    """Neither what this process holds nor what an earlier one held counts."""
    held = np.ones(300 << 20, np.uint8)
    (first, high), (second, low) = in_fresh_process(peak_after, 400), in_fresh_process(peak_after, 1)
    assert len({first, second, os.getpid()}) == 3
    assert high > low + 350
    assert low < 290
    assert held[0] == 1


def test_a_fresh_process_is_confined_to_the_cores_that_it_is_given() -> None:
    before = os.sched_getaffinity(0)
    assert in_fresh_process(cores, on_cores=1) == 1
    assert in_fresh_process(cores) == len(before)
    assert os.sched_getaffinity(0) == before


def test_exit_status_follows_the_criteria_or_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: argparse.Namespace) -> bool:
        raise ConfigError("wrong", fix="do it right")

    args = argparse.Namespace()
    assert [main(lambda _: True, args), main(lambda _: False, args), main(broken, args)] == [
        0,
        1,
        ConfigError.exit_code,
    ]
    assert "do it right" in capsys.readouterr().err
