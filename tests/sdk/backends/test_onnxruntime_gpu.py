"""The GPU path of the ONNX Runtime backend, on a device that is the CPU: the same bits as the CPU path.

The memory and the kernels of a GPU are not tested here; the CPU's are used instead.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from lipstream import LipSyncEngine, _native
from lipstream.backends import device
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.backends.onnxruntime_gpu import Device, DeviceSteps
from lipstream.bundle import Bundle
from lipstream.errors import BackendError
from lipstream.gpu import Driver, NoDriverError, driver

Layers = list[int]
"""Addresses, one for each layer."""


class HostKernels:
    """`_native_cuda` with addresses in host memory."""

    def _ring(self, address: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        buffer = (ctypes.c_float * int(np.prod(shape))).from_address(address)
        return np.frombuffer(buffer, np.float32).reshape(shape)

    def ring_keep(
        self, k: Layers, v: Layers, sink: Layers, slot: int, rolling: int, first: int, count: int, **sizes: Any
    ) -> None:
        shape = sizes["ring_shape"]
        frames = shape[0] - rolling
        for layer in zip(k, v, sink, strict=True):
            rings = [self._ring(at, (n, *shape[1:])) for at, n in zip(layer, (*shape[:1] * 2, frames), strict=True)]
            _native.ring_keep(*rings, slot, rolling, first, count)

    def ring_anchor(self, k: Layers, sink: Layers, rolling: int, count: int, cos: int, sin: int, **sizes: Any) -> None:
        shape, pairs = sizes["ring_shape"], sizes["temporal_pairs"]
        for layer in zip(k, sink, strict=True):
            rings = self._ring(layer[0], shape), self._ring(layer[1], (shape[0] - rolling, *shape[1:]))
            _native.ring_anchor(*rings, rolling, count, self._ring(cos, (pairs,)), self._ring(sin, (pairs,)))

    def synchronize(self) -> None: ...


def test_a_stream_with_states_on_the_device_gives_the_same_bits() -> None:
    bundle = Bundle.load("tiny")
    backend = OnnxRuntimeBackend(bundle)
    device = Device("cpu", HostKernels())
    constants = {name: device.put(x) for name, x in bundle.constants.items()}
    streams = backend.open_steps(), DeviceSteps(backend.graphs, constants, bundle.manifest, device)
    g, a = bundle.manifest.geometry, bundle.manifest.audio
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.standard_normal(shape, np.float32)

    def same(call: str, *arguments: Any) -> None:
        plain, bound = (getattr(stream, call)(*arguments) for stream in streams)
        np.testing.assert_array_equal(plain, bound)

    for chunk in range(6):  # the window fills, includes the sink, and wraps
        same("encode_audio", 0.1 * normal(a.lookback + g.video_frames * a.samples_per_frame + a.lookahead))
        same("encode_video", rng.random((g.video_frames, 3, *g.crop_size), np.float32))
        for stream in streams:
            stream.begin_chunk(chunk)
        inputs = normal(3 * g.latent_channels + 1, g.chunk_frames, *g.latent_size), normal(g.video_frames, a.features)
        for step in range(2):
            same("denoise", normal(g.latent_channels, g.chunk_frames, *g.latent_size), *inputs, step)
        latent = normal(g.latent_channels, g.chunk_frames, *g.latent_size)
        for stream in streams:
            stream.context(latent, *inputs)
        same("decode", latent)


def test_errors_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="no provider is named 'rocm'"):
        LipSyncEngine.load("tiny", provider="rocm")
    with pytest.raises(BackendError, match="has no option provider"):
        LipSyncEngine.load("tiny", backend="torch", provider="cuda")
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider") as error:
        LipSyncEngine.load("tiny", provider="cuda")
    assert "lipstream[gpu]" in error.value.fix
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(device, "driver", lambda: driver("libnothing.so.1"))
    with pytest.raises(BackendError, match="no NVIDIA driver") as error:
        LipSyncEngine.load("tiny", provider="cuda")
    assert "driver" in error.value.fix
    monkeypatch.setattr(device, "driver", lambda: Driver("13.0", ()))
    with pytest.raises(BackendError, match="shows no GPU"):
        LipSyncEngine.load("tiny", provider="cuda")


FAKE_DRIVER = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
  strncpy(name, device == 7 ? "NVIDIA H100 80GB HBM3" : "NVIDIA L4", length); return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int h100 = device == 7;
  *value = attribute == 75 ? (h100 ? 9 : 8) : attribute == 76 ? (h100 ? 0 : 9) : attribute == 16 ? 132 : -1;
  return 0;
}
"""


@pytest.mark.parametrize("status", [0, 100])
def test_the_gpus_are_queried_from_the_driver(status: int, tmp_path: Path) -> None:
    """Against a library with the driver's functions, compiled from C with the types of its manual."""
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(FAKE_DRIVER)
    subprocess.run(["gcc", "-shared", "-fPIC", f"-DSTATUS={status}", "-o", library, source], check=True)
    if status:
        with pytest.raises(NoDriverError, match="cuInit gives CUDA error 100"):
            driver(str(library))
        return
    found = driver(str(library))
    assert found.cuda == "13.0"
    assert [(gpu.name, gpu.compute_capability, gpu.multiprocessors) for gpu in found.gpus] == [
        ("NVIDIA H100 80GB HBM3", "9.0", 132),
        ("NVIDIA L4", "8.9", 132),
    ]
    assert found.gpus[0].memory == 80 << 30
