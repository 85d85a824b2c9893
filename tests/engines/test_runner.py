"""The runner on Polygraphy, simulated: the profile of the rings' length, and memory that is given back."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lipstream_engines import runner as module
from lipstream_engines.runner import PolygraphyRunner

LENGTHS = (3, 6, 7)


class Array:
    """A device array; `held` counts those that are not freed."""

    held = 0
    most = 0

    def __enter__(self) -> Array:
        Array.held += 1
        Array.most = max(Array.most, Array.held)
        return self

    def __exit__(self, *error: object) -> None:
        Array.held -= 1

    def copy_from(self, data: Any) -> Array:
        assert Array.held
        return self

    def view(self, shape: Any, dtype: str) -> str:
        return f"{dtype}{list(shape)}"


class Engine:
    num_io_tensors = 2

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths
        self.num_optimization_profiles = len(lengths)

    def get_tensor_name(self, i: int) -> str:
        return ("k.0", "slot")[i]

    def get_tensor_dtype(self, name: str) -> str:
        return "bf16" if name == "k.0" else "int64"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(self.lengths[profile], 4, 2, 8)] * 3


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """The profile and the inputs of each run."""
    runs: list[tuple[int, dict[str, Any]]] = []
    Array.held = Array.most = 0

    class TrtRunner:
        def __init__(self, engine: Engine, optimization_profile: int) -> None:
            self.profile = optimization_profile

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

        def infer(self, feed: dict[str, Any], copy_outputs_to_host: bool) -> dict[str, Any]:
            assert Array.held == 1
            runs.append((self.profile, feed))
            if len(runs) == 4:
                raise RuntimeError("out of memory")
            return {}

    modules: dict[str, Any] = {
        "backend.trt": types.SimpleNamespace(
            EngineFromBytes=lambda plan: lambda: Engine(LENGTHS if plan == b"function" else (7,)), TrtRunner=TrtRunner
        ),
        "cuda": types.SimpleNamespace(DeviceArray=types.SimpleNamespace(raw=lambda shape: Array())),
        "datatype": types.SimpleNamespace(DataType=types.SimpleNamespace(BFLOAT16="bf16", FLOAT8E4M3FN="fp8")),
    }
    monkeypatch.setattr(module, "polygraphy", modules.__getitem__)
    tensorrt = types.SimpleNamespace(DataType=types.SimpleNamespace(BF16="bf16", FP8="fp8"))
    monkeypatch.setattr(module, "tensorrt", lambda: tensorrt)
    return runs


def inputs(frames: int) -> dict[str, Any]:
    return {"k.0": np.zeros((frames, 4, 2, 8), np.float32), "slot": np.zeros(1, np.int64)}


def test_the_profile_is_that_of_the_rings_length(ran: list[tuple[int, Any]], tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"function")
    engine = PolygraphyRunner(tmp_path / "plan")
    for frames in (6, 3, 7):
        engine.infer(inputs(frames))
    assert [(profile, feed["k.0"]) for profile, feed in ran] == [
        (1, "bf16[6, 4, 2, 8]"),
        (0, "bf16[3, 4, 2, 8]"),
        (2, "bf16[7, 4, 2, 8]"),
    ]


def test_one_profile_is_used_for_any_inputs(ran: list[tuple[int, Any]], tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"native")
    PolygraphyRunner(tmp_path / "plan").infer({"slot": np.zeros(1, np.int64)} | inputs(7))
    assert ran[0][0] == 0


def test_device_arrays_are_freed_after_each_run(ran: list[tuple[int, Any]], tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"function")
    engine = PolygraphyRunner(tmp_path / "plan")
    for _ in range(3):
        engine.infer(inputs(7))
        assert Array.held == 0
    with pytest.raises(RuntimeError):
        engine.infer(inputs(7))
    assert (Array.held, Array.most) == (0, 1)
