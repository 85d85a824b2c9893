"""The script of all measurements on a GPU: its commands exist, and failed, finished and repeated parts are told apart.

The control flow is tested with an interpreter that only writes down what it was called with.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lipstream.cli import build_parser as lipstream_parser

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "h100.sh"


class Stub:
    """An interpreter for the script. It logs its arguments, and fails if they contain the file `fails`' text."""

    def __init__(self, folder: Path) -> None:
        self.out, self.calls, self.fails, self.sleeps = (folder / n for n in ("out", "calls", "fails", "sleeps"))
        self.python = folder / "python"
        self.python.write_text(
            f"""#!/usr/bin/env bash
echo "$*" >> {self.calls}
echo the output of $2
[ ! -e {self.sleeps} ] || sleep 30
[ ! -e {self.fails} ] || [[ "$*" != *"$(cat {self.fails})"* ]] || exit 3
"""
        )
        self.python.chmod(0o755)

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": str(self.python), "OUT": str(self.out)} | more
        self.calls.write_text("")
        return subprocess.run(
            ["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path)


def test_every_part_is_a_command_that_exists() -> None:
    listed = subprocess.run(["bash", SCRIPT, "--list"], capture_output=True, text=True, check=True).stdout
    parts = dict(line.split("\t") for line in listed.splitlines())
    measured = (ROOT / "benchmarks" / "TO_MEASURE.md").read_text()
    seen = set()
    for name, text in parts.items():
        for command in re.split(r"&&|\|\|?|[{};]|(?<!\S)>\s*\S+", text):
            words = shlex.split(command.replace("$(cat", "").replace(")", ""))
            if words[1:3] == ["-m", "lipstream"]:
                released = words[3] == "export" and words[4] != "tiny"
                lipstream_parser().parse_args(["export", "b", *words[5:]] if released else words[3:])
                seen.add(words[3])
            elif words[1:2] == ["-m"] and words[2].startswith("benchmarks."):
                module = importlib.import_module(words[2])
                module.build_parser().parse_args(words[3:])
                seen.add(words[2])
        assert name in ("install", "doctor") or re.search(rf"h100.sh [a-z0-9 -]*\b{name}(?![-\w])", measured), name
    assert {"benchmarks.stream", "benchmarks.dit_latency", "benchmarks.random_release"} <= seen
    assert {"doctor", "export", "build", "verify", "inspect", "run"} <= seen
    assert [*parts].index("stream") < min([*parts].index(name) for name in ("kernels", "tiny", "eager", "verify"))


def test_a_part_fails_if_the_first_command_of_its_pipe_fails(stub: Stub) -> None:
    stub.fails.write_text("-m pytest")
    found = stub.run("kernels", "doctor")
    assert found.returncode == 1
    assert found.stdout.startswith("kernels: failed, exit status 3")
    assert "doctor: passed" in found.stdout
    assert found.stdout.splitlines()[-4:] == ["passed: doctor", "failed: kernels", "skipped: none", "not run: none"]
    stub.fails.unlink()
    assert stub.run("kernels").stdout.startswith("kernels: passed")


def test_a_skipped_test_of_a_kernel_is_a_failure(stub: Stub) -> None:
    stub.python.write_text(stub.python.read_text() + "echo 1 skipped\n")
    assert stub.run("kernels").stdout.startswith("kernels: failed")


def test_finished_parts_are_skipped_and_failed_ones_repeated(stub: Stub) -> None:
    stub.fails.write_text("lipstream verify")
    first = stub.run("stream", "verify")
    assert first.returncode == 1
    assert "the output of benchmarks.stream" in first.stdout  # the figures of the stream are shown at once
    again = stub.run("stream", "verify")
    assert again.stdout.startswith("stream: skipped, ")
    assert "verify: failed" in again.stdout
    assert len(stub.called()) == 1
    stub.fails.unlink()
    mended = stub.run("stream", "verify")
    assert mended.returncode == 0
    assert mended.stdout.splitlines()[-4:] == ["passed: verify", "failed: none", "skipped: stream", "not run: none"]
    assert stub.run("stream", "verify").returncode == 0
    assert not stub.called()
    assert "stream: passed" in stub.run("stream", SIZE="14b").stdout  # another size is another result
    stub.run("--fresh", "stream", "verify")
    assert len(stub.called()) == 2


def test_a_part_that_fails_when_repeated_is_not_skipped_afterwards(stub: Stub) -> None:
    assert stub.run("doctor").returncode == 0
    stub.fails.write_text("doctor")
    assert stub.run("--fresh", "doctor").returncode == 1
    assert stub.run("doctor").stdout.startswith("doctor: failed")


def test_bundles_are_made_without_a_gpu_and_used_where_they_are(stub: Stub, tmp_path: Path) -> None:
    done = stub.run("--bundles")
    assert done.returncode == 0
    assert {call.split()[2] for call in stub.called() if "-m lipstream" in call} == {"export"}
    assert (
        len([call for call in stub.called() if call.startswith("-m benchmarks.random_release")]) == 1
    )  # files are written once
    given = tmp_path / "given"
    (given / "1.3b-bf16").mkdir(parents=True)
    found = stub.run("--fresh", "bundle", "bundle-tiny", "build", BUNDLES=str(given))
    assert found.stdout.startswith("bundle: skipped, ")
    export, build = stub.called()
    assert f"-o {given}/tiny-bf16" in export
    assert f"build {given}/1.3b-bf16 " in build


def test_a_part_has_a_time_limit(stub: Stub) -> None:
    stub.sleeps.touch()
    found = stub.run("doctor", "kernels", LIMIT="1")
    assert found.returncode == 1
    assert found.stdout.startswith("doctor: failed, stopped after 1 s")
    assert "kernels: not run, the time is up" in found.stdout


def test_an_unknown_part_is_refused(stub: Stub) -> None:
    found = stub.run("doctor", "cook")
    assert found.returncode == 2
    assert "no part is called cook" in found.stderr
    assert not stub.called()


def test_help_names_every_option_and_setting(stub: Stub) -> None:
    done = stub.run("--help")
    assert done.returncode == 0
    for name in ("--bundles", "--list", "--fresh", "LIMIT", "SIZE", "BUNDLES", "OUT", "PYTHON"):
        assert name in done.stdout
    header = SCRIPT.read_text().split("\nset -")[0].splitlines()[1:]
    assert done.stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in header]
    assert not stub.called()
    assert not stub.out.exists()


def test_real_commands(tmp_path: Path) -> None:
    stub = Stub(tmp_path)
    stub.python = Path(sys.executable)
    tried = stub.run("eager", "dub", "doctor", SIZE="tiny", DEVICE="cpu", QUICK="1")  # there are no engines
    first, second, third, *_ = tried.stdout.splitlines()
    assert first.startswith("eager: passed"), (stub.out / "eager.log").read_text()
    found = json.loads((stub.out / "dit_latency-tiny.json").read_text())
    assert {*found["results"]["structures"]} == {"ring", "upstream"}
    assert second.startswith("dub: failed, exit status 30")  # BundleNotFoundError
    assert third.startswith("doctor: passed")
    assert "lipstream" in (stub.out / "doctor.log").read_text()
