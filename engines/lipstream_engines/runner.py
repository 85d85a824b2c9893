"""Engines on a GPU, through Polygraphy: it binds aliased outputs, allocates, and copies in and out.

For inspecting and verifying engines; the SDK's backend runs streams.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from lipstream.backends.device import require_gpu
from lipstream.bundle import Bundle
from lipstream.bundle.golden import Arrays
from lipstream.bundle.plans import require_runnable
from lipstream.errors import MissingExtraError
from lipstream.gpu import Driver, require_tensorrt_driver
from lipstream.plugin import load_plugin

from .codes import E4M3
from .trt import tensorrt


class Runner(Protocol):
    """One engine, ready to run."""

    def memories(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs `memory.i`."""

    def ring_in_fp8(self) -> bool:
        """Whether the inputs `k.i` and `v.i` are codes."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Inputs by name, float32 or int64 as `lipstream.bundle.golden` makes them -> outputs, float32.

        A ring in FP8 is of type `codes.E4M3`, in and out.
        """


def require_gpu_for(bundle: Bundle) -> Driver:
    """The driver of this machine, on whose first GPU the bundle's plans run.

    Raises:
        BackendError: no GPU, an old driver, or no plugin that they need.
        PlanError: built for another TensorRT or GPU.
    """
    what = f"the plans of {bundle.path}"
    found = require_gpu(what)
    require_tensorrt_driver(found, what)
    assert bundle.manifest.plans
    require_runnable(bundle.manifest.plans, bundle.path, tensorrt=tensorrt().__version__, gpu=found.gpus[0])
    if bundle.manifest.plans.ring == "plugin":
        load_plugin(tensorrt())
    return found


def polygraphy(module: str) -> Any:
    """A module of Polygraphy. Raises MissingExtraError."""
    try:
        return importlib.import_module(f"polygraphy.{module}")
    except ImportError as error:
        raise MissingExtraError(
            f"this needs the module {error.name!r}, which is not installed", fix="pip install 'lipstream[tensorrt]'"
        ) from error


class PolygraphyRunner:
    """See `Runner`. Tensors in bfloat16 and FP8, which NumPy lacks, are passed on the device."""

    def __init__(self, plan: Path) -> None:
        self._trt = trt = polygraphy("backend.trt")
        self._cuda, self._types = polygraphy("cuda"), polygraphy("datatype").DataType
        self._engine = trt.EngineFromBytes(plan.read_bytes())()

    def memories(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(self._engine.get_tensor_shape(name)) for name in self._names() if name.startswith("memory.")
        }

    def ring_in_fp8(self) -> bool:
        return "k.0" in self._names() and self._engine.get_tensor_dtype("k.0") == tensorrt().DataType.FP8

    def infer(self, inputs: Arrays) -> Arrays:
        runner = self._trt.TrtRunner(self._engine, optimization_profile=self._profile(inputs))
        with ExitStack() as given, runner:
            feed = {name: self._given(name, inputs[name], given) for name in self._names() if name in inputs}
            found = runner.infer(feed, copy_outputs_to_host=False)
            return {name: self._taken(view) for name, view in found.items()}

    def _profile(self, inputs: Arrays) -> int:
        """The profile for the length of the rings."""
        count = self._engine.num_optimization_profiles
        if count == 1:
            return 0
        lengths = [self._engine.get_tensor_profile_shape("k.0", i)[-1][0] for i in range(count)]
        return lengths.index(len(inputs["k.0"]))

    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    def _given(self, name: str, x: np.ndarray[Any, Any], given: ExitStack) -> Any:
        """The input on the device, freed with `given`, or on the host."""
        types = tensorrt().DataType
        narrow = {
            types.BF16: (ml_dtypes.bfloat16, self._types.BFLOAT16),
            types.FP8: (E4M3, self._types.FLOAT8E4M3FN),
        }
        dtype = self._engine.get_tensor_dtype(name)
        if dtype not in narrow:
            return np.ascontiguousarray(x)
        of_numpy, of_polygraphy = narrow[dtype]
        data = np.ascontiguousarray(x.astype(of_numpy)).view(np.uint8).reshape(-1)
        array = given.enter_context(self._cuda.DeviceArray.raw((data.nbytes,))).copy_from(data)
        return array.view(shape=x.shape, dtype=of_polygraphy)

    def _taken(self, view: Any) -> np.ndarray[Any, Any]:
        data = np.empty(view.nbytes, np.uint8)
        kind = self._cuda.MemcpyKind.DeviceToHost
        self._cuda.wrapper().memcpy(dst=data.ctypes.data, src=view.ptr, nbytes=view.nbytes, kind=kind)
        # All outputs are float32, bfloat16 or codes.
        dtype = {4: np.float32, 2: ml_dtypes.bfloat16, 1: E4M3}[view.nbytes // math.prod(view.shape)]
        found: np.ndarray[Any, Any] = data.view(dtype).reshape(view.shape)
        return found if dtype == E4M3 else found.astype(np.float32)


def layer_information(plan: Path) -> dict[str, Any]:
    """Detailed information of TensorRT's inspector on a plan, and its scratch memory in bytes, `device_memory`."""
    engine = polygraphy("backend.trt").EngineFromBytes(plan.read_bytes())()
    text = engine.create_engine_inspector().get_engine_information(tensorrt().LayerInformationFormat.JSON)
    return {**json.loads(text), "device_memory": engine.device_memory_size_v2}


def summarise(information: Mapping[str, Any]) -> dict[str, Any]:
    """Layers, how many of each type and output precision, fused attentions, and scratch memory in bytes."""
    layers = [layer for layer in information["Layers"] if isinstance(layer, dict)]
    types: dict[str, int] = {}
    precisions: dict[str, int] = {}
    for layer in layers:
        kind = layer.get("LayerType", "?")
        types[kind] = types.get(kind, 0) + 1
        for output in layer.get("Outputs", ()):
            precision = str(output.get("Format/Datatype", "?")).split()[0]
            precisions[precision] = precisions.get(precision, 0) + 1
    fused = [layer["Name"] for layer in layers if "mha" in json.dumps(layer).lower()]
    return {
        "layers": len(layers),
        "types": types,
        "precisions": precisions,
        "fused_attention": len(fused),
        "device_memory": information.get("device_memory"),
    }
