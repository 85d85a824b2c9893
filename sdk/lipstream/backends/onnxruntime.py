"""The ONNX Runtime backend: runs the exported graphs, with all states bound to fixed buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..bundle import Bundle
from ..bundle.manifest import CLIP_ENCODER, IDENTITY
from ..bundle.onnx_header import without_output
from ..errors import BackendError
from .base import GRAPHS, Array, ChunkStream, default_threads
from .onnxruntime_gpu import PROVIDERS, Device, DeviceSteps, require_provider
from .pipelined import PipelinedStream
from .ring import Ring
from .stepped import SteppedStream
from .steps import Steps

MOST_TWICE = 64 << 20
"""Bytes of weights up to which the context pass has a graph of its own, without the velocity, and so a second copy."""


class OnnxRuntimeBackend:
    """A bundle of ONNX graphs, loaded once and shared by all streams.

    Args:
        bundle: one whose graphs are `.onnx` files; graphs that are never called may be missing.
        threads: CPU threads a graph may use, 0 for `default_threads`.
        provider: "cpu", or with onnxruntime-gpu "cuda" or "tensorrt", where the states stay on the device.

    Raises:
        BackendError: a graph does not load, or this backend does not support its precision.
    """

    reuses_streams = False

    def __init__(self, bundle: Bundle, *, threads: int = 0, provider: str = "cpu") -> None:
        if provider not in PROVIDERS:
            raise BackendError(f"no provider is named {provider!r}", expected=f"one of: {', '.join(PROVIDERS)}")
        if bundle.manifest.plans:
            raise BackendError(
                f"{bundle.path} holds TensorRT plans, not ONNX graphs",
                expected="a bundle that lipstream export wrote",
                fix='backend="tensorrt", or load the bundle that the plans were built from',
            )
        if bundle.manifest.precision != "fp32":
            raise BackendError(
                f"{bundle.path} is in {bundle.manifest.precision}, and ONNX Runtime's CPU provider computes in fp32",
                expected="a bundle in fp32, or engines built from this one",
                fix="lipstream export SOURCE --precision fp32 -o BUNDLE, or lipstream build --help",
            )
        self._device = Device("cuda", require_provider(provider)) if provider != "cpu" else None
        self._bundle, self._provider, self._opening = bundle, provider, threading.Lock()
        self._clip_encoder: ort.InferenceSession | None = None
        self._options = options = ort.SessionOptions()
        self.threads = threads or default_threads(bundle)
        options.intra_op_num_threads = self.threads
        # Waiting threads sleep: spinning ones would take cores from the rest of the application.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.manifest = bundle.manifest
        self.constants = bundle.constants
        self.graphs: dict[str, ort.InferenceSession] = {}
        for name in GRAPHS:
            if f"{name}.onnx" not in bundle.manifest.files:
                continue
            path = bundle.file(f"{name}.onnx")
            graph = self._load(name, str(path))
            if name == "denoiser" and not self._device and _twice(bundle, path):
                # ONNX Runtime computes all outputs of a graph, also those that are not asked for.
                options.add_session_config_entry(
                    "session.model_external_initializers_file_folder_path", str(path.parent)
                )
                self.graphs["context"] = self._load(name, without_output(path.read_bytes(), "velocity"))
            self.graphs[name] = graph
        if self._device:
            self._on_device = {name: self._device.put(x) for name, x in self.constants.items()}

    def open_stream(self) -> ChunkStream:
        """Open a stream; pipelined over two threads if it runs on the CPU with more than one thread."""
        m, mask, identity = self.manifest, self.constants["mask.latent"], self.constants.get(IDENTITY)
        if self._device or self.threads == 1:
            return SteppedStream(self.open_steps(), m.t_list, m.geometry.sequence, mask, identity)
        return PipelinedStream(OnnxRuntimeSteps(self), m.t_list, m.geometry.sequence, mask, identity)

    @property
    def encode_clip(self) -> Callable[[Array, int], Array] | None:
        """See `Backend`."""
        return self._encode_clip if self.manifest.encodes_clips else None

    def _encode_clip(self, samples: Array, frames: int) -> Array:
        with self._opening:  # by the first call: only files need the graph
            if self._clip_encoder is None:
                self._clip_encoder = self._load(CLIP_ENCODER, str(self._bundle.file(f"{CLIP_ENCODER}.onnx")))
        missing = frames * self.manifest.audio.samples_per_frame - len(samples)
        padded = np.pad(samples.astype(np.float32), (0, missing))
        count = np.array([len(samples)], np.int64)
        (features,) = self._clip_encoder.run(["features"], {"samples": padded, "count": count})
        return cast(Array, features)

    def _load(self, name: str, model: str | bytes) -> ort.InferenceSession:
        """The graph `name` of the bundle from a path, or its bytes. Raises BackendError."""
        try:
            graph = ort.InferenceSession(model, self._options, providers=PROVIDERS[self._provider])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            memory = isinstance(error, MemoryError) or "bad_alloc" in str(error)
            raise BackendError(
                f"graph {name} of {self._bundle.path} does not load: {error}",
                expected="memory for its weights" if memory else "",
                fix="free memory" if memory else "pip install --upgrade onnxruntime, or export the bundle again",
            ) from error
        if graph.get_providers()[0] != PROVIDERS[self._provider][0]:  # ONNX Runtime only logs the fallback
            raise BackendError(
                f"provider={self._provider!r} does not start; ONNX Runtime would compute on {graph.get_providers()[0]}",
                expected="the CUDA and cuDNN libraries that onnxruntime-gpu was built for",
                fix="pip install 'onnxruntime-gpu[cuda,cudnn]'; for details: lipstream doctor",
            )
        return graph

    def open_steps(self) -> Steps:
        """Open a stream that is called graph by graph, for tools that inspect intermediate results."""
        if self._device:
            return DeviceSteps(self.graphs, self._on_device, self.manifest, self._device)
        return OnnxRuntimeSteps(self)


def _twice(bundle: Bundle, path: Path) -> bool:
    """Whether the context pass gets a graph of its own."""
    weights = sum(bundle.file(name).stat().st_size for name in bundle.manifest.files if name.endswith(".bin"))
    # For a graph in memory ONNX Runtime does not follow links, as in a cache of Hugging Face, to the weights.
    return weights <= MOST_TWICE and not path.is_symlink()


class _Memory:
    """The tensors that a graph passes from one call to the next (`memory.i` -> `memory_out.i`), double-buffered."""

    def __init__(self, graph: ort.InferenceSession) -> None:
        shapes = {i.name: i.shape for i in graph.get_inputs() if i.name.startswith("memory.")}
        self.now = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        self.next = {name.replace("memory", "memory_out"): np.zeros_like(x) for name, x in self.now.items()}

    def swap(self) -> None:
        now, after = list(self.now.values()), list(self.next.values())
        self.now = dict(zip(self.now, after, strict=True))
        self.next = dict(zip(self.next, now, strict=True))


class OnnxRuntimeSteps:
    """See `steps.Steps` and `pipelined.RetractableSteps`."""

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        self._graphs, self._constants = backend.graphs, backend.constants
        geometry = backend.manifest.geometry
        self._steps = len(backend.manifest.t_list) - 1
        self._ring = Ring(geometry)
        self._memory = {name: _Memory(g) for name, g in self._graphs.items() if name.startswith("video")}
        self._text = {name: x for name, x in self._constants.items() if name.startswith("text_")}

    def encode_audio(self, samples: Array) -> Array:
        graph = self._graphs["audio_encoder"]
        features = np.empty(graph.get_outputs()[0].shape, np.float32)
        _call(graph, {"samples": samples}, {"features": features})
        return features

    def encode_video(self, frames: Array) -> Array:
        mask = self._constants["mask.pixel"]
        return self._with_memory("video_encoder", {"frames": frames, "mask": mask}, "latents")

    def decode(self, latent: Array) -> Array:
        return self._with_memory("video_decoder", {"latent": latent}, "frames")

    def begin_chunk(self, chunk: int) -> None:
        self._ring.begin(chunk)

    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        velocity = np.empty_like(latent)
        self._pass(latent, condition, audio, step, {"velocity": velocity})
        return velocity

    def context(self, latent: Array, condition: Array, audio: Array) -> None:
        self._pass(latent, condition, audio, self._steps, {})

    def retract(self, *, encoded: bool) -> None:
        for graph in ("video_encoder", "video_decoder") if encoded else ("video_decoder",):
            self._memory[graph].swap()  # the other buffer still holds the state before the chunk

    def _pass(
        self,
        latent: Array,
        condition: Array,
        audio: Array,
        step: int,
        outputs: dict[str, Array],
    ) -> None:
        ring = self._ring
        tensors: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
            **self._text,
            "latent": latent,
            "condition": condition,
            "audio": audio,
            "modulation": self._constants[f"modulation.{step}"],
            "rope_cos": ring.cos,
            "rope_sin": ring.sin,
            "slot": np.array([ring.position.slot], np.int64),
        }
        for i, (k, v) in enumerate(ring.attended()):
            tensors |= {f"k.{i}": k, f"v.{i}": v}
        for i, (k, v) in enumerate(ring.written()):
            outputs |= {f"k_out.{i}": k, f"v_out.{i}": v}
        graph = "denoiser" if "velocity" in outputs or "context" not in self._graphs else "context"
        _call(self._graphs[graph], tensors, outputs)
        ring.swap()

    def _with_memory(self, name: str, inputs: Mapping[str, Array], output: str) -> Array:
        graph, memory = self._graphs[name], self._memory[name]
        shapes = {o.name: o.shape for o in graph.get_outputs()}
        result = np.empty(shapes[output], np.float32)
        _call(graph, {**inputs, **memory.now}, {output: result, **memory.next})
        memory.swap()
        return result


def _call(
    graph: ort.InferenceSession,
    inputs: Mapping[str, NDArray[np.float32] | NDArray[np.int64]],
    outputs: Mapping[str, Array],
) -> None:
    """Run `graph` on the given arrays, without copies; inputs that the graph does not have are ignored."""
    binding = graph.io_binding()
    wanted = {i.name for i in graph.get_inputs()}
    for name, x in inputs.items():
        if name in wanted:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)))
    for name, x in outputs.items():
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(x))
    graph.run_with_iobinding(binding)
