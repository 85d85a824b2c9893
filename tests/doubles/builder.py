"""TensorRT's parser and builder, and Polygraphy's runner: as much of them as `lipstream build` and `verify` call.

The parser accepts every graph; the builder writes plans of `doubles.trt`, with bfloat16 widened to float32.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
from lipstream_export.precision.widen import widen
from onnx import external_data_helper
from trt_bodies import with_bodies

from . import trt
from .device import Device


class INetworkDefinition:
    """Attributes: model: that was parsed, its weights in memory. graph: its name. registry: of plugins."""

    registry: trt.IPluginRegistry

    model: onnx.ModelProto
    graph: str

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    def get_layer(self, index: int) -> Any:
        return SimpleNamespace(type=SimpleNamespace(name=self.model.graph.node[index].op_type))


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: trt.ILogger) -> None:
        assert logger.ready
        self._network = network
        self._unknown: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._unknown)

    def get_error(self, index: int) -> Any:
        name = self._unknown[index]
        return SimpleNamespace(node_operator=lambda: name, node_name=lambda: "", desc=lambda: "no such plugin")

    def parse(self, model: bytes, path: str) -> bool:
        self._network.model = onnx.load_from_string(model)
        self._network.graph = Path(path).stem
        external_data_helper.load_external_data_for_model(self._network.model, str(Path(path).parent))
        for node in self._network.model.graph.node:
            if node.domain not in ("", "trt"):
                named = {attribute.name: attribute.s.decode() for attribute in node.attribute}
                creator = node.op_type, named["plugin_version"], named["plugin_namespace"]
                known = [(c.name, c.plugin_version, c.plugin_namespace) for c in self._network.registry.all_creators]
                if creator not in known:
                    self._unknown.append(node.op_type)
        return not self._unknown


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        assert min == opt == max
        self.shapes[input] = opt


class IBuilderConfig:
    """Options other than profiles are without effect."""

    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.progress_monitor: Any = None
        self.aliases = False  # of plugins

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def clear_flag(self, flag: str) -> None: ...
    def set_flag(self, flag: str) -> None: ...
    def set_preview_feature(self, feature: str, enable: bool) -> None:
        self.aliases |= feature == "ALIASED_PLUGIN_IO_10_03" and enable

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None: ...
    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return not ignore_mismatch

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: serialized_timing_cache)

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"")


class Builder:
    registry: trt.IPluginRegistry

    def __init__(self, logger: trt.ILogger) -> None:
        assert logger.ready

    def create_network(self, flags: int) -> INetworkDefinition:
        network = INetworkDefinition()
        network.registry = self.registry
        return network

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes:
        model = network.model
        kinds = {node.op_type for node in model.graph.node}
        plugin = "KVRingWrite" in kinds
        in_place = "TRT_KVCacheUpdate" in kinds or (plugin and config.aliases)
        if any(node.domain for node in model.graph.node):
            model = with_bodies(model)
        widen(model)
        config.progress_monitor.phase_start("building", None, 1)
        config.progress_monitor.step_complete("building", 0)
        config.progress_monitor.phase_finish("building")
        lengths = [profile.shapes["k.0"][0] for profile in config.profiles]
        return trt.plan(model, network.graph, lengths, in_place=in_place, plugin=plugin)


class IProgressMonitor:
    def __init__(self) -> None: ...


class Names:
    """Options that are only passed on, by name."""

    def __getattr__(self, name: str) -> str:
        return name


def add(tensorrt: ModuleType) -> None:
    """Give the module of `doubles.trt` a parser and a builder."""
    Builder.registry = tensorrt.get_plugin_registry()
    for kind in (Builder, IBuilderConfig, INetworkDefinition, IOptimizationProfile, IProgressMonitor, OnnxParser):
        setattr(tensorrt, kind.__name__, kind)
    vars(tensorrt).update(
        BuilderFlag=Names(),
        MemoryPoolType=Names(),
        PreviewFeature=Names(),
        ProfilingVerbosity=Names(),
    )


def polygraphy(device: Device) -> dict[str, Any]:
    """Its modules by name, for `lipstream_engines.runner.polygraphy`."""

    class TrtRunner:
        def __init__(self, engine: trt.ICudaEngine, optimization_profile: int) -> None:
            self._engine = engine

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

        def infer(self, feed: dict[str, Any], copy_outputs_to_host: bool) -> dict[str, Any]:
            found = trt.run(
                self._engine._run, {name: x.codes if isinstance(x, Codes) else x for name, x in feed.items()}
            )
            return {name: View(np.ascontiguousarray(x)) for name, x in found.items()}

    class View:
        def __init__(self, x: np.ndarray[Any, Any]) -> None:
            self.x, self.shape, self.nbytes, self.ptr = x, x.shape, x.nbytes, x.ctypes.data

    class Codes:
        """A tensor in FP8 on the device. Attributes: codes: uint8."""

        def __enter__(self) -> Codes:
            return self

        def __exit__(self, *error: object) -> None: ...

        def copy_from(self, codes: np.ndarray[Any, Any]) -> Codes:
            self.codes = codes
            return self

        def view(self, shape: tuple[int, ...], dtype: str) -> Codes:
            assert dtype == "FLOAT8E4M3FN"
            self.codes = self.codes.reshape(shape)
            return self

    def memcpy(dst: int, src: int, nbytes: int, kind: str) -> None:
        ctypes.memmove(dst, src, nbytes)

    return {
        "backend.trt": SimpleNamespace(
            EngineFromBytes=lambda plan: lambda: trt.read_plan(device, Builder.registry, plan), TrtRunner=TrtRunner
        ),
        "cuda": SimpleNamespace(
            MemcpyKind=Names(),
            wrapper=lambda: SimpleNamespace(memcpy=memcpy),
            DeviceArray=SimpleNamespace(raw=lambda shape: Codes()),
        ),
        "datatype": SimpleNamespace(DataType=Names()),
    }
