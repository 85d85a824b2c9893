"""A driver of CUDA 12: doctor, build, verify, inspect and backend name it and the fix, before TensorRT is called."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import doubles
import pytest
from doubles import GPU
from doubles.device import Device
from lipstream.backends.base import load_backend
from lipstream.bundle import CONSTANTS, Bundle, writing
from lipstream.cli import main
from lipstream.errors import BackendError
from lipstream.gpu import Driver, too_old_for_tensorrt

OLD = Driver("12.8", (GPU,))
PROBLEM = "the driver runs CUDA up to 12.8, and TensorRT's cu13 packages need 13"
FIX = "install a driver of version 580 or later"


class Unused(ModuleType):
    """TensorRT, of which only the version may be read."""

    __version__ = "11.4.0.106"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"tensorrt.{name} is used")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle with files in place of plans."""
    source, out = Bundle.load("tiny"), tmp_path_factory.mktemp("old") / "plans"
    with writing(out, replace(source.manifest, plans=doubles.plans("native"), files={})) as folder:
        for graph in source.manifest.graphs:
            (folder / f"{graph}.plan").write_bytes(b"plan")
        (folder / CONSTANTS).write_bytes(source.file(CONSTANTS).read_bytes())
    return out


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lipstream.cli.diagnosis", "lipstream.backends.device", "lipstream_engines.build"):
        monkeypatch.setattr(f"{module}.driver", lambda: OLD)
    monkeypatch.setitem(sys.modules, "tensorrt", Unused("tensorrt"))


@pytest.mark.parametrize(
    ("cuda", "old"), [("11.8", True), ("12.9", True), ("13.0", False), ("13.2", False), ("14.0", False)]
)
def test_cuda_13_is_the_first_that_is_new_enough(cuda: str, old: bool) -> None:
    assert bool(too_old_for_tensorrt(Driver(cuda, ()))) == old


@pytest.mark.usefixtures("old_driver")
def test_doctor(plans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(plans), "--json"]) == 1
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    for name in ("CUDA", f"bundle {plans.name}"):
        assert found[name] == {"state": "broken", "name": name, "found": PROBLEM, "fix": FIX}


@pytest.mark.usefixtures("old_driver")
@pytest.mark.parametrize(
    "command",
    [
        "build tiny --recipe tiny-bf16 -o {out}",
        "build tiny --recipe tiny-bf16 --dry-run",
        "verify {plans}",
        "inspect {plans} --layers",
    ],
)
def test_commands(command: str, plans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(command.format(out=tmp_path / "out", plans=plans).split())
    said = capsys.readouterr().err
    assert status == BackendError.exit_code
    assert PROBLEM in said
    assert f"fix: {FIX}" in said


def test_the_backend_calls_nothing_on_the_device(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    with doubles.gpu(device), monkeypatch.context() as patch:
        patch.setattr("lipstream.backends.device.driver", lambda: OLD)
        with pytest.raises(BackendError, match="TensorRT's cu13 packages need 13") as error:
            load_backend("tensorrt", Bundle.load(plans))
    assert error.value.fix == FIX
    assert not device.counts
    assert not device.streams
