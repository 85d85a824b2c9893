"""ONNX Runtime's GPU providers: the ring, the codec's memories and the constants stay on the device between calls.

Inputs and outputs are bound by address; only the session's inputs and results are copied between host and device.
The ring is double-buffered, since ONNX Runtime does not promise that an output may share its input's memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .. import _native
from ..bundle import Geometry, Manifest
from ..bundle.rope import temporal_tables
from ..errors import BackendError
from .base import Array
from .device import Kernels, move_sink, require_gpu, require_kernels

PROVIDERS: dict[str, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}


def require_provider(provider: str) -> Kernels:
    """The kernels for `provider`, "cuda" or "tensorrt".

    Raises:
        BackendError: which package or driver is missing.
    """
    wanted = PROVIDERS[provider][0]
    if wanted not in ort.get_available_providers():
        raise BackendError(
            f"provider={provider!r}: onnxruntime {ort.__version__} has no {wanted}",
            expected="the package onnxruntime-gpu in place of onnxruntime",
            fix="pip uninstall -y onnxruntime, then pip install 'lipstream[gpu]'",
        )
    require_gpu(f"provider={provider!r}")
    return require_kernels(f"provider={provider!r}")


class Device:
    """Memory for tensors. Attributes: name: "cuda", or "cpu" in tests. kernels: operate on its addresses."""

    def __init__(self, name: str, kernels: Kernels) -> None:
        self.name, self.kernels = name, kernels

    def put(self, x: NDArray[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x), self.name, 0)

    def zeros(self, *shape: int) -> ort.OrtValue:
        return self.put(np.zeros(shape, np.float32))


class OrtValueRing:
    """`lipstream.backends.ring.Ring` in device memory."""

    def __init__(self, geometry: Geometry, device: Device) -> None:
        self.geometry, self._device = geometry, device
        g = geometry
        self._frame = (g.tokens, g.num_heads, g.head_dim)

        def zeros(frames: int) -> list[ort.OrtValue]:
            return [device.zeros(frames, *self._frame) for _ in range(g.num_layers)]

        self.k, self.v, self._sink_k = zeros(g.window), zeros(g.window), zeros(max(g.sink, 1))
        self._spare_k, self._spare_v = zeros(g.window), zeros(g.window)
        self.begin(0)

    def begin(self, chunk: int) -> None:
        """As `Ring.begin`."""
        g = self.geometry
        self.position = p = _native.ring_position(chunk, g.window, g.sink, g.chunk_frames)
        self.cos, self.sin = temporal_tables(np.arange(g.chunk_frames) + chunk * g.chunk_frames, g.head_dim)
        if not p.keep_count and not p.anchored:
            return
        cos, sin = (self._device.put(table[0]) for table in temporal_tables(np.array([p.shift]), g.head_dim))
        layers = [
            (k.data_ptr(), v.data_ptr(), sink.data_ptr())
            for k, v, sink in zip(self.k, self.v, self._sink_k, strict=True)
        ]
        move_sink(self._device.kernels, g, p, layers, (cos.data_ptr(), sin.data_ptr()), dtype="float32")
        self._device.kernels.synchronize()  # ONNX Runtime works on another CUDA stream

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind the attended prefix as the graph's input rings, and the spare buffers as its output rings."""
        shape = (self.position.valid, *self._frame)
        for i in range(self.geometry.num_layers):
            for kind, now, after in (("k", self.k, self._spare_k), ("v", self.v, self._spare_v)):
                binding.bind_input(f"{kind}.{i}", self._device.name, 0, np.float32, shape, now[i].data_ptr())
                binding.bind_output(f"{kind}_out.{i}", self._device.name, 0, np.float32, shape, after[i].data_ptr())

    def swap(self) -> None:
        self.k, self._spare_k = self._spare_k, self.k
        self.v, self._spare_v = self._spare_v, self.v


class DeviceSteps:
    """See `steps.Steps`.

    Args:
        constants: of the bundle, on the device.
    """

    def __init__(
        self,
        graphs: Mapping[str, ort.InferenceSession],
        constants: Mapping[str, ort.OrtValue],
        manifest: Manifest,
        device: Device,
    ) -> None:
        self._graphs, self._constants, self._device = graphs, constants, device
        self._steps = len(manifest.t_list) - 1
        self._ring = OrtValueRing(manifest.geometry, device)
        self._memory = {name: self._memories(graph) for name, graph in graphs.items() if name.startswith("video")}

    def encode_audio(self, samples: Array) -> Array:
        return self._call("audio_encoder", {"samples": samples}, "features")

    def encode_video(self, frames: Array) -> Array:
        return self._call("video_encoder", {"frames": frames}, "latents", {"mask": "mask.pixel"})

    def decode(self, latent: Array) -> Array:
        return self._call("video_decoder", {"latent": latent}, "frames")

    def begin_chunk(self, chunk: int) -> None:
        self._ring.begin(chunk)

    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        inputs = {"latent": latent, "condition": condition, "audio": audio}
        return self._call("denoiser", inputs, "velocity", {"modulation": f"modulation.{step}"})

    def context(self, latent: Array, condition: Array, audio: Array) -> None:
        inputs = {"latent": latent, "condition": condition, "audio": audio}
        self._call("denoiser", inputs, "", {"modulation": f"modulation.{self._steps}"})

    def _memories(self, graph: ort.InferenceSession) -> list[dict[str, ort.OrtValue]]:
        """Two sets of buffers: the graph reads one and writes the other."""
        shapes = {i.name: i.shape for i in graph.get_inputs() if i.name.startswith("memory.")}
        return [{name: self._device.zeros(*shape) for name, shape in shapes.items()} for _ in range(2)]

    def _call(
        self, name: str, inputs: Mapping[str, Array], output: str, constants: Mapping[str, str] | None = None
    ) -> Array:
        graph = self._graphs[name]
        binding = graph.io_binding()
        wanted = {i.name for i in graph.get_inputs()}
        given: dict[str, NDArray[Any]] = dict(inputs)
        named = {key: value for key, value in (constants or {}).items() if key in wanted}
        ring = name == "denoiser"
        if ring:
            given |= {"rope_cos": self._ring.cos, "rope_sin": self._ring.sin}
            given["slot"] = np.array([self._ring.position.slot], np.int64)
            named |= {key: key for key in self._constants if key.startswith("text_") and key in wanted}
            self._ring.bind(binding)
        for key, x in given.items():
            if key in wanted:
                binding.bind_cpu_input(key, np.ascontiguousarray(x))
        for key, value in named.items():
            binding.bind_ortvalue_input(key, self._constants[value])
        now, after = self._memory.get(name, ({}, {}))
        for key in now:
            binding.bind_ortvalue_input(key, now[key])
            binding.bind_ortvalue_output(key.replace("memory", "memory_out"), after[key])
        result = np.empty(_shape(graph, output), np.float32)
        if output:
            binding.bind_ortvalue_output(output, ort.OrtValue.ortvalue_from_numpy(result))
        graph.run_with_iobinding(binding)
        if ring:
            self._ring.swap()
        if now:
            self._memory[name].reverse()
        return result


def _shape(graph: ort.InferenceSession, output: str) -> Sequence[int]:
    shapes: dict[str, Sequence[int]] = {o.name: o.shape for o in graph.get_outputs()}
    return shapes.get(output, (0,))
