"""The commands of docs/h100.md, in its order, on a simulated H100: they exist, fit each other, and print what it says.

The bundle `tiny` stands in for the 1.3B student: only the files of its release are not written.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import doubles
import pytest
from doubles import builder
from doubles.device import Device
from lipstream import samples
from lipstream.cli import build_parser, main
from lipstream.gpu import Driver, Gpu, NoDriverError
from lipstream.server.app import create_app
from lipstream.server.settings import Settings
from starlette.testclient import TestClient

from benchmarks import common, random_release, stream

PAGE = (Path(__file__).parents[2] / "docs" / "h100.md").read_text()
H100 = Driver("13.0", (Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 << 30),))
COMMAND = re.compile(r"([A-Z]+=\S+ )*(lipstream|python3?|make|bash|pip|rsync|nvidia-smi|nvcc)\b( |$)")

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
    """Every command of the page, in blocks and in lines, in its order."""
    found = []
    for block, line in re.findall(r"^```sh\n(.*?)^```|`([^`\n]+)`", PAGE, re.DOTALL | re.MULTILINE):
        found += [text.split(" # ")[0].strip() for text in block.splitlines()] or [line]
    return [*dict.fromkeys(text for text in found if COMMAND.match(text))]


@pytest.fixture
def machine(tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a machine with an H100, with a video and speech."""
    device = Device(3)
    shutil.copy(samples.FACE, tmp_path / "in.mp4")
    assert speech == tmp_path / "speech.wav"
    with doubles.gpu(device), monkeypatch.context() as patch:
        builder.add(sys.modules["tensorrt"])
        patch.setattr("lipstream_engines.runner.polygraphy", builder.polygraphy(device).__getitem__)
        for module in ("lipstream.cli.diagnosis", "lipstream.backends.device", "lipstream_engines.build"):
            patch.setattr(f"{module}.driver", lambda: H100)
        patch.setattr("benchmarks.stream.WARM_UP", 2)
        patch.setattr("benchmarks.stream.DEADLINE", 40.0)  # no waiting for real time
        patch.setenv("LIPSTREAM_CACHE", str(tmp_path / "cache"))
        patch.chdir(tmp_path)
        yield tmp_path
    assert not device.hazards


def serve(words: list[str]) -> bool:
    """Whether the server becomes ready; without its port."""
    args = build_parser().parse_args(words)
    with TestClient(create_app(Settings(bundle=args.bundle, max_sessions=args.max_sessions))) as client:
        while (found := client.get("/v1/health/ready")).status_code == 503:
            time.sleep(0.05)
        return found.status_code == 200


def run(command: str) -> bool:
    """Run a command of the page in this process; whether it succeeded."""
    words = shlex.split(command.replace("$(cat files.txt)", "tiny"))
    if words[:2] == ["lipstream", "serve"]:
        return serve(words[1:])
    if words[0] == "lipstream":
        return main(words[1:]) == 0
    assert words[:2] == ["python", "-m"]
    if words[2] == "benchmarks.random_release":
        assert words[-2] == ">"
        return bool(random_release.build_parser().parse_args(words[3:-2]))
    assert words[2] == "benchmarks.stream"
    return common.main(stream.run, stream.build_parser().parse_args([*words[3:], "--chunks", "2"])) == 0


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
