"""The commands of docs/h100.md, in its order, on a simulated H100: they exist, fit each other, and print what it says.

The bundle `tiny` stands in for the 1.3B student: only the files of its release are not written.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pages
import pytest
from lipstream.gpu import Driver, NoDriverError
from simulated_h100 import H100, simulated_h100
from simulated_h100 import run as run_simulated

from benchmarks import random_release

PAGE = (Path(__file__).parents[2] / "docs" / "h100.md").read_text()

SCRIPT = "test_h100.py runs it with a stub"
NOT_RUN = {
    "nvidia-smi": "asks the real driver",
    "nvidia-smi dmon": "asks the real driver",
    "nvcc": "the toolkit is not simulated",
    "nvcc --version": "the toolkit is not simulated",
    "python3 --version": "this interpreter runs the test",
    "bash benchmarks/h100.sh": SCRIPT,
    "make .venv/.dev && LIMIT=7200 PYTHON=.venv/bin/python bash benchmarks/h100.sh --bundles": SCRIPT,
    "rsync -a out/gpu/bundles/ gpu-machine:bundles/": "copies to another machine",
    "BUNDLES=$HOME/bundles LIMIT=3600 bash benchmarks/h100.sh": SCRIPT,
    "make .venv/.dev && .venv/bin/pip install -e '.[dev,tensorrt]' && . .venv/bin/activate": "downloads packages",
    "lipstream doctor": "run with its options",
    "lipstream inspect 1.3b-engines --layers": "TensorRT's inspector is not simulated",
    "lipstream export ... --precision fp8": "abbreviated",
}


def commands() -> list[str]:
    """Every command of the page, in its order."""
    return [*dict.fromkeys(chain.from_iterable(pages.commands("docs/h100.md").values()))]


@pytest.fixture
def machine(tmp_path: Path, speech: Path) -> Iterator[Path]:
    """A folder on a machine with an H100, with a video and speech."""
    assert speech == tmp_path / "speech.wav"
    with simulated_h100(tmp_path):
        yield tmp_path


def run(command: str) -> bool:
    """Run a command of the page in this process; whether it succeeded."""
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "benchmarks.random_release"]:
        assert words[-2] == ">"
        return bool(random_release.build_parser().parse_args(words[3:-2]))
    return run_simulated(command.replace("$(cat files.txt)", "tiny"))


def promised(text: str) -> re.Pattern[str]:
    """Text of the page, "..." being anything within a line."""
    assert text in PAGE, f"the page does not say {text!r} any more"
    return re.compile(re.escape(text).replace(r"\.\.\.", ".*"))


def test_the_page_from_doctor_to_a_server(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed: dict[str, str] = {}
    for command in commands():
        if command not in NOT_RUN:
            passed = run(command)
            captured = capsys.readouterr()
            assert passed, f"{command}\n{captured.out}\n{captured.err}"
            printed[command] = captured.out

    def count(start: str, text: str) -> int:
        (output,) = [output for command, output in printed.items() if command.startswith(start)]
        return len(promised(text).findall(output))

    doctor = re.search(r"lines like these:\n\n   ```\n(.*?)   ```", PAGE, re.DOTALL)
    assert doctor
    for line in doctor[1].splitlines():
        assert count("lipstream doctor --require gpu", line.strip()) == 1
    assert count("lipstream export $(cat", "1.3b-bf16: 4 graphs in bf16") == 1
    assert count("lipstream build 1.3b-bf16 --recipe 1.3b-bf16-h100 -o", "built in ... s") == 4
    assert count("lipstream verify", "every output is within its error bound") == 1
    assert printed["lipstream verify 1.3b-engines"].count(" allowed, ") == 5
    speed = "1 stream: ... fps of all, a chunk takes ... ms, p95 ..., p99 ..."
    assert count("python -m benchmarks.stream --bundle", speed) == 1
    (lines,) = [output.splitlines() for command, output in printed.items() if "benchmarks.stream" in command]
    assert [line.split()[0] for line in lines] == ["1", "2", "4", "8"]
    made = json.loads(printed["lipstream run in.mp4 speech.wav -o out.mp4 --bundle 1.3b-engines --json"])
    assert made["frames"] > 0
    assert (machine / "out.mp4").is_file()
    again = "lipstream build 1.3b-bf16 --recipe 1.3b-bf16-h100 -o 1.3b-engines"
    assert run(again)
    assert len(promised("from the cache").findall(capsys.readouterr().out)) == 4


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        ("no NVIDIA driver: libcuda.so.1: cannot open shared object file", "broken   GPU          no NVIDIA driver"),
        ("", "broken   CUDA         the driver runs CUDA up to 12.8"),
    ],
)
def test_what_doctor_says_of_drivers(
    machine: Path, problem: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def driver() -> Driver:
        if problem:
            raise NoDriverError(problem)
        return Driver("12.8", H100.gpus)

    with monkeypatch.context() as patch:
        patch.setattr("lipstream.cli.diagnosis.driver", driver)
        assert not run("lipstream doctor --require gpu --require tensorrt")
    assert promised(line).match(capsys.readouterr().out)  # first, as what is broken is


def test_every_command_that_is_not_run_is_on_the_page() -> None:
    assert {*NOT_RUN} <= {*commands()}
