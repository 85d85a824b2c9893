"""A simulated GPU: doubles of the modules that the TensorRT backend imports, on a strict simulation."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import lipstream
from lipstream import plugin
from lipstream.bundle import CONSTANTS, Bundle, writing
from lipstream.bundle.plans import Plans
from lipstream.gpu import Driver, Gpu
from lipstream_engines.lower_ring import Lowering, load_graph, ring_scales

from . import cuda_runtime, kernels, trt
from .device import Device

LIBRARY = trt.LIBRARY
GPU = Gpu("a double", "9.0", 132, 80 << 30)


@contextmanager
def gpu(device: Device) -> Iterator[Any]:
    """The package `lipstream.backends.tensorrt`, imported again, on `device`; afterwards the modules are restored."""
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.runtime = cuda_runtime.make(device)  # type: ignore[attr-defined]
    own = "lipstream.backends.tensorrt"
    before = {name: module for name, module in sys.modules.items() if name.startswith((own, "tensorrt", "cuda"))}
    before["lipstream._native_cuda"] = sys.modules.get("lipstream._native_cuda")  # type: ignore[assignment]
    native = vars(lipstream).get("_native_cuda")
    for name in before:
        sys.modules.pop(name, None)
    sys.modules |= {
        "tensorrt": trt.make(device),
        "cuda": cuda,
        "cuda.bindings": bindings,
        "cuda.bindings.runtime": bindings.runtime,
        "lipstream._native_cuda": kernels.make(device),
    }
    lipstream._native_cuda = sys.modules["lipstream._native_cuda"]  # type: ignore[attr-defined]
    needs = importlib.import_module("lipstream.backends.device")
    driver, library = needs.driver, plugin.library
    needs.driver = lambda: Driver("13.0", (GPU,))  # type: ignore[attr-defined]
    plugin.library = lambda: LIBRARY
    try:
        yield importlib.import_module(own)
    finally:
        needs.driver, plugin.library = driver, library  # type: ignore[attr-defined]
        for name in [name for name in sys.modules if name.startswith((own, "tensorrt", "cuda"))]:
            del sys.modules[name]
        sys.modules.pop("lipstream._native_cuda")
        sys.modules |= {name: module for name, module in before.items() if module}
        if native is None:
            del lipstream._native_cuda  # type: ignore[attr-defined]
        else:
            lipstream._native_cuda = native  # type: ignore[attr-defined]


def plans(ring: Lowering, scales: list[list[float]] | None = None) -> Plans:
    """The manifest's section on plans for the double."""
    return Plans("double", {}, ring, trt.VERSION, False, "13.0", GPU.dump(), "0" * 64, {}, scales)


def write_plans(bundle: Bundle, ring: Lowering, out: Path) -> Bundle:
    """A bundle of plans for the double, as `lipstream build` lays one out."""
    found = ring_scales(load_graph(bundle.file("denoiser.onnx")), bundle.manifest.geometry, ring)
    scales = [list(pair) for pair in found] if found else None
    with writing(out, replace(bundle.manifest, plans=plans(ring, scales), files={})) as folder:
        for graph in bundle.manifest.graphs:
            trt.write_plan(bundle, graph, ring, folder / f"{graph}.plan")
        (folder / CONSTANTS).write_bytes(bundle.file(CONSTANTS).read_bytes())
    return Bundle.load(out)
