"""The double has only what the real modules have: names and parameters are compared with NVIDIA's own."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from doubles import builder, cuda_runtime, trt
from doubles.device import Device
from rig import environment

CLASSES = ("ILogger", "IStreamReaderV2", "Runtime", "ICudaEngine", "IExecutionContext")
CLASSES += ("Builder", "IBuilderConfig", "INetworkDefinition", "IOptimizationProfile", "OnnxParser", "IPluginRegistry")
ENUMS = ("DataType", "TensorIOMode", "TensorLocation", "SeekPosition", "ExecutionContextAllocationStrategy")
LOOK = f"""
import inspect, json, tensorrt
found = {{}}
for name in {CLASSES!r}:
    kind = getattr(tensorrt, name)
    found[name] = {{key: inspect.getdoc(inspect.getattr_static(kind, key)) or "" for key in dir(kind)}}
for name in {ENUMS!r}:
    found[name] = {{key: int(value) for key, value in getattr(tensorrt, name).__members__.items()}}
print(json.dumps(found))
"""


def test_every_call_of_tensorrt_is_one_of_tensorrt_11(needs_rig: None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    real = json.loads(done.stdout)
    module = trt.make(Device())
    builder.add(module)
    called = 0
    for name in CLASSES:
        double: Any = getattr(module, name)
        for key, member in vars(double).items():
            if key.startswith("_") or not callable(member) or isinstance(member, type):
                continue
            called += 1
            parameters = [*inspect.signature(member).parameters]
            # All overloads: "name(self: ..., a: ..., b: ... = ...) -> ..."
            signatures = re.findall(rf"{key}\((.*)\) ->", real[name][key])
            found = [re.findall(r"(?:^|, )(\w+):", signature) for signature in signatures]
            assert parameters in found, f"{name}.{key}{parameters}: TensorRT has {found}"
    assert called >= 28
    attributes = {"num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"}
    assert attributes <= {*real["ICudaEngine"]}
    assert "engine_host_code_allowed" in real["Runtime"]
    assert "all_creators" in real["IPluginRegistry"]
    assert {"read", "seek"} <= {*real["IStreamReaderV2"]}
    for name in ENUMS:
        for key, value in getattr(module, name).__members__.items():
            assert real[name][key] == value, f"{name}.{key}"


def test_every_call_of_cuda_is_one_of_its_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    module = cuda_runtime.make(Device())
    functions = {name: call.__wrapped__ for name, call in vars(module).items() if hasattr(call, "__wrapped__")}
    assert len(functions) > 20
    for name, call in functions.items():
        first = getattr(real, name).__doc__.splitlines()[0]
        parameters = [part.split(":")[0].split()[-1] for part in first[first.index("(") + 1 : -1].split(",") if part]
        assert [*inspect.signature(call).parameters] == parameters, first
    for kind in (cuda_runtime.cudaError_t, cuda_runtime.cudaMemcpyKind, cuda_runtime.cudaStreamCaptureMode):
        for key, value in kind.__members__.items():
            assert int(getattr(getattr(real, kind.__name__), key)) == value
    assert (real.cudaEventBlockingSync, real.cudaEventDisableTiming, real.cudaStreamNonBlocking) == (1, 2, 1)
