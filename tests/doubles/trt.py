"""`tensorrt` on a `Device`: engines that run their ONNX graph through ONNX Runtime, and the rules of TensorRT's API."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from lipstream import plugin
from lipstream.bundle import Bundle
from lipstream_engines.lower_ring import Lowering, load_graph, lower_ring, phases
from onnx import ModelProto, TensorProto, external_data_helper
from trt_bodies import with_bodies

from .device import Device

MAGIC = b"DOUBLE"
VERSION = "11.4.0.106"
SCRATCH = 4096
LIBRARY = Path("/the/plugin.so")
DURATIONS = {"video_encoder": 20.0, "audio_encoder": 6.0, "denoiser": 30.0, "video_decoder": 12.0}
"""Milliseconds, invented: they only order the work of different lanes."""

Enum = enum.IntEnum
DataType = Enum("DataType", {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "BOOL": 4, "BF16": 7, "INT64": 8, "FP8": 6})
TensorIOMode = Enum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
TensorLocation = Enum("TensorLocation", {"DEVICE": 0, "HOST": 1})
Strategy = Enum("ExecutionContextAllocationStrategy", {"STATIC": 0, "ON_PROFILE_CHANGE": 1, "USER_MANAGED": 2})
SeekPosition = Enum("SeekPosition", {"SET": 0, "CUR": 1, "END": 2})
_TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(float8e4m3fn)": ("FP8", np.uint8),
}


def write_plan(bundle: Bundle, graph: str, ring: Lowering, path: Path) -> None:
    """A graph of a bundle as a plan that this module reads."""
    geometry = bundle.manifest.geometry
    model = lower_ring(load_graph(bundle.file(f"{graph}.onnx")), geometry, ring)
    if ring != "function":
        model = with_bodies(model)
    external_data_helper.load_external_data_for_model(model, str(bundle.path))
    varies = ring == "function" and graph == "denoiser"
    lengths = list(phases(geometry)) if varies else []
    plugin = ring == "plugin" and graph == "denoiser"
    path.write_bytes(plan(model, graph, lengths, in_place=ring != "function", plugin=plugin))


def plan(model: ModelProto, graph: str, lengths: list[int], *, in_place: bool, plugin: bool) -> bytes:
    """A lowered graph, its weights in memory and in float32, as a plan with a profile for each length of the ring."""
    text = json.dumps({"name": graph, "lengths": lengths, "in_place": in_place, "plugin": plugin}).encode()
    return MAGIC + len(text).to_bytes(4, "little") + text + model.SerializeToString()


def read_plan(device: Device, registry: IPluginRegistry, data: bytes) -> ICudaEngine | None:
    """The engine of a plan; None for other bytes, or if a plugin that it needs is not registered."""
    if not data.startswith(MAGIC):
        return None
    size = int.from_bytes(data[6:10], "little")
    head = json.loads(data[10 : 10 + size])
    if head["plugin"] and not plugin.is_registered(registry):
        return None
    device.allocate(len(data))  # the weights
    return ICudaEngine(device, head, data[10 + size :])


_sessions: dict[bytes, onnxruntime.InferenceSession] = {}


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if model not in _sessions:  # hundreds of tests read the same plans
        _sessions[model] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return _sessions[model]


def run(session: onnxruntime.InferenceSession, feed: dict[str, Any]) -> dict[str, Any]:
    """All outputs by name; tensors in FP8 are their codes, uint8, in and out."""

    def value(x: Any, kind: str) -> onnxruntime.OrtValue:
        x = np.ascontiguousarray(x)
        if kind == "tensor(float8e4m3fn)":
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(x, TensorProto.FLOAT8E4M3FN)
        return onnxruntime.OrtValue.ortvalue_from_numpy(x)

    names = [end.name for end in session.get_outputs()]
    given = {end.name: value(feed[end.name], end.type) for end in session.get_inputs()}
    return {name: x.numpy() for name, x in zip(names, session.run_with_ort_values(names, given), strict=True)}


class ILogger:
    Severity = Enum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})

    def __init__(self) -> None:
        self.ready = True


class IPluginRegistry:
    """Attributes: libraries: what each file that can be loaded registers: (name, version, namespace)."""

    def __init__(self) -> None:
        self.libraries = {str(LIBRARY): (plugin.NAME, plugin.VERSION, plugin.NAMESPACE)}
        self.all_creators: list[SimpleNamespace] = []

    def load_library(self, plugin_path: str) -> object | None:
        creator = self.libraries.get(plugin_path)
        if creator is None:
            return None
        name, version, namespace = creator
        made = SimpleNamespace(name=name, plugin_version=version, plugin_namespace=namespace)
        if made in self.all_creators:
            return None  # as TensorRT, if one of its plugins is already registered
        self.all_creators.append(made)
        return made


class IStreamReaderV2:
    def __init__(self) -> None:
        self.ready = True


class ICudaEngine:
    def __init__(self, device: Device, head: dict[str, Any], model: bytes) -> None:
        self._device, self._head, self._run = device, head, _session(model)
        self._ends = {x.name: (x, TensorIOMode.INPUT) for x in self._run.get_inputs()}
        self._ends |= {x.name: (x, TensorIOMode.OUTPUT) for x in self._run.get_outputs()}
        self.num_io_tensors = len(self._ends)
        self.num_optimization_profiles = max(1, len(head["lengths"]))
        self.device_memory_size_v2 = SCRATCH

    def get_tensor_name(self, index: int) -> str:
        return [*self._ends][index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._ends[name][1]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [length if isinstance(length, int) else -1 for length in self._ends[name][0].shape]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[_TYPES[self._ends[name][0].type][0]]

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        aliased = self._head["in_place"] and name.startswith(("k_out.", "v_out."))
        return name.replace("_out", "") if aliased else None

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        shape = self.get_tensor_shape(name)
        if -1 in shape:
            shape[0] = self._head["lengths"][profile_index]
        return [shape] * 3

    def create_execution_context(self, strategy: Any) -> IExecutionContext:
        assert strategy == Strategy.USER_MANAGED
        self._device.forbid_in_capture("a context")
        self._device.counts["contexts"] += 1
        return IExecutionContext(self._device, self)


class IExecutionContext:
    def __init__(self, device: Device, engine: ICudaEngine) -> None:
        self._device, self._engine = device, engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._scratch = (0, 0)
        self._profile = 0
        self._version = 0  # what a captured graph was captured with
        self._updated = -1  # shapes for which there was a direct run

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self._engine.device_memory_size_v2
        self._device.view(memory, size)
        self._scratch = memory, self._engine.device_memory_size_v2
        self._version += 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert self._device.streams[stream_handle].capturing is None  # this is work on the stream
        self._profile, self._version = profile_index, self._version + 1
        return 0 <= profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name], self._version = tuple(shape), self._version + 1
        return list(shape) == self._engine.get_tensor_profile_shape(name, self._profile)[1]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._ends or memory % 256 or not self._device.is_device(memory):
            return False
        self._addresses[name], self._version = memory, self._version + 1
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._ends if -1 in self._shape(name)]

    def _shape(self, name: str) -> list[int]:
        shape = self._engine.get_tensor_shape(name)
        if -1 in shape:  # of our graphs only the rings, all of one length
            known = self._shapes.get(name.replace("_out", ""))
            shape = list(known) if known else shape
        return shape

    def execute_async_v3(self, stream_handle: int) -> bool:
        device, engine, version = self._device, self._engine, self._version
        if self.infer_shapes() or {*self._addresses} != {*engine._ends} or not self._scratch[1]:
            return False
        for output in engine._ends:
            aliased = engine.get_aliased_input_tensor(output)
            if aliased and self._addresses[output] != self._addresses[aliased]:
                return False
        capturing = device.streams[stream_handle].capturing is not None
        if capturing and self._updated != version:
            return False  # new shapes need a direct run, not a captured one
        self._updated = version
        addresses, scratch = dict(self._addresses), self._scratch
        types = {name: _TYPES[end.type][1] for name, (end, _) in engine._ends.items()}
        shapes = {name: self._shape(name) for name in engine._ends}
        inputs = [name for name, (_, mode) in engine._ends.items() if mode == TensorIOMode.INPUT]
        outputs = [name for name, (_, mode) in engine._ends.items() if mode == TensorIOMode.OUTPUT]

        def memory(name: str) -> Any:
            size = int(np.prod(shapes[name])) * np.dtype(types[name]).itemsize
            return device.view(addresses[name], size)

        def compute(given: dict[str, Any]) -> dict[str, Any]:
            feed = {name: x.view(types[name]).reshape(shapes[name]) for name, x in given.items()}
            found = run(engine._run, feed)
            return found | {"scratch": np.frombuffer(device.random.randbytes(scratch[1]), np.uint8)}

        work = device.computation(
            engine._head["name"],
            lambda: {name: memory(name) for name in inputs},
            lambda: {name: memory(name) for name in outputs} | {"scratch": device.view(*scratch)},
            compute,
            DURATIONS[engine._head["name"]],
            frozenset(name for name in outputs if engine.get_aliased_input_tensor(name)),
            lambda: self._version == version,
        )
        device.counts["runs"] += 1
        device.put(stream_handle, work)
        return True


def make(device: Device) -> ModuleType:
    """The module."""

    registry = IPluginRegistry()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            assert logger.ready
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, stream_reader_v2: IStreamReaderV2) -> ICudaEngine | None:
            assert stream_reader_v2.ready
            data = b""
            while piece := stream_reader_v2.read(1 << 30, 0):  # type: ignore[attr-defined]
                data += piece
            return read_plan(device, registry, data)

    module = ModuleType("tensorrt")
    contents = SimpleNamespace(
        __version__=VERSION,
        ILogger=ILogger,
        IStreamReaderV2=IStreamReaderV2,
        IPluginRegistry=IPluginRegistry,
        Runtime=Runtime,
        get_plugin_registry=lambda: registry,
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
        DataType=DataType,
        TensorIOMode=TensorIOMode,
        TensorLocation=TensorLocation,
        SeekPosition=SeekPosition,
        ExecutionContextAllocationStrategy=Strategy,
    )
    vars(module).update(vars(contents))
    return module
