"""The parts of CUDA's runtime that streams need: memory, lanes, events, captured graphs. Every call is checked.

Functions: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/runtime.html
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GpuError, GpuMemoryError
from .trace import Trace

ALIGNMENT = 256
"""Bytes; required by TensorRT and the kernels' widest accesses, guaranteed by cudaMalloc."""
Anything = NDArray[Any]


class Cuda:
    """The runtime. Attributes: api: the module `cuda.bindings.runtime`."""

    def __init__(self, api: Any) -> None:
        self.api = api

    def call(self, function: str, *arguments: Any) -> Any:
        """Call `function` and return its result. Raises GpuMemoryError, GpuError."""
        status, *found = getattr(self.api, function)(*arguments)
        if status == self.api.cudaError_t.cudaErrorMemoryAllocation:
            raise GpuMemoryError(
                f"the GPU has too little free memory ({function})",
                expected="memory for one more stream",
                fix="close a session, use a smaller bundle, or free the GPU's memory (nvidia-smi)",
            )
        if status != self.api.cudaError_t.cudaSuccess:
            _, name = self.api.cudaGetErrorName(status)
            text = name.decode() if isinstance(name, bytes) else name
            raise GpuError(f"{function} returned {text}", fix="load the engine in a new process; lipstream doctor")
        return found[0] if found else None


class Layout:
    """Parts of one block of memory. Attributes: at: offset of each part in bytes, aligned. bytes: of all."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.at: dict[str, int] = {}
        self.bytes = 0
        for name, size in sizes.items():
            self.at[name] = self.bytes
            self.bytes += -(-size // ALIGNMENT) * ALIGNMENT
        self.bytes = max(self.bytes, ALIGNMENT)


class DeviceMemory:
    """One block of device memory, divided into parts; freed with the object.

    Attributes:
        address, bytes: of all. at: address of each part.
    """

    def __init__(self, cuda: Cuda, sizes: Mapping[str, int]) -> None:
        layout = Layout(sizes)
        self.bytes = layout.bytes
        self.address = int(cuda.call("cudaMalloc", layout.bytes))
        self.at = {name: self.address + offset for name, offset in layout.at.items()}
        weakref.finalize(self, cuda.call, "cudaFree", self.address).atexit = False


class Pinned:
    """Pinned host memory, divided into arrays; freed with the last of them.

    Args:
        shapes: shape and dtype of each.

    Attributes:
        at: the arrays, laid out as `Layout`. whole: uint8, all of them as one.
    """

    def __init__(self, cuda: Cuda, shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        counts = {name: math.prod(shape) for name, (shape, _) in shapes.items()}
        layout = Layout({name: counts[name] * np.dtype(dtype).itemsize for name, (_, dtype) in shapes.items()})
        address = int(cuda.call("cudaHostAlloc", layout.bytes, 0))
        memory: Any = (ctypes.c_char * layout.bytes).from_address(address)
        weakref.finalize(memory, cuda.call, "cudaFreeHost", address).atexit = False
        self.whole = np.frombuffer(memory, np.uint8)
        self.at: dict[str, Anything] = {
            name: np.frombuffer(memory, dtype, counts[name], layout.at[name]).reshape(shape)
            for name, (shape, dtype) in shapes.items()
        }


class Event:
    """A point in a lane that other lanes, or the host, can wait for."""

    def __init__(self, cuda: Cuda, *, timing: bool = False) -> None:
        self._cuda = cuda
        # The waiting host thread sleeps: spinning would take a core from the rest of the application.
        flags = cuda.api.cudaEventBlockingSync | (0 if timing else cuda.api.cudaEventDisableTiming)
        self.handle = cuda.call("cudaEventCreateWithFlags", flags)
        weakref.finalize(self, cuda.call, "cudaEventDestroy", self.handle).atexit = False

    def wait(self) -> None:
        """Block the host until the event is reached."""
        self._cuda.call("cudaEventSynchronize", self.handle)

    def since(self, earlier: Event) -> float:
        """Milliseconds since `earlier`; both must have been created with `timing`, and be reached."""
        return float(self._cuda.call("cudaEventElapsedTime", earlier.handle, self.handle))


class Lane:
    """A CUDA stream: its work runs in order, in parallel with the other lanes.

    Attributes:
        name: for traces. handle: of the stream. trace: records spans, or None.
    """

    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name
        self.trace: Trace | None = None
        self.handle = cuda.call("cudaStreamCreateWithFlags", cuda.api.cudaStreamNonBlocking)
        self._kinds = cuda.api.cudaMemcpyKind
        weakref.finalize(self, cuda.call, "cudaStreamDestroy", self.handle).atexit = False

    def synchronize(self) -> None:
        """Block the host until all work on the lane is done."""
        self.cuda.call("cudaStreamSynchronize", self.handle)

    def record(self, event: Event) -> None:
        self.cuda.call("cudaEventRecord", event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """Let later work on the lane wait for `event`; without effect if it was never recorded."""
        self.cuda.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def upload(self, to: int, data: Anything) -> None:
        """Copy a contiguous array to the device; it must not change until the copy is done."""
        kind = self._kinds.cudaMemcpyHostToDevice
        self.cuda.call("cudaMemcpyAsync", to, data.ctypes.data, data.nbytes, kind, self.handle)

    def download(self, to: Anything, address: int) -> None:
        kind = self._kinds.cudaMemcpyDeviceToHost
        self.cuda.call("cudaMemcpyAsync", to.ctypes.data, address, to.nbytes, kind, self.handle)

    def copy(self, to: int, address: int, size: int) -> None:
        kind = self._kinds.cudaMemcpyDeviceToDevice
        self.cuda.call("cudaMemcpyAsync", to, address, size, kind, self.handle)

    def copy_rows(self, to: int, address: int, size: int, step: int, rows: int) -> None:
        """Copy `rows` pieces of `size` bytes, `step` bytes apart, to contiguous memory."""
        kind = self._kinds.cudaMemcpyDeviceToDevice
        self.cuda.call("cudaMemcpy2DAsync", to, size, address, step, size, rows, kind, self.handle)

    def clear(self, memory: DeviceMemory) -> None:
        self.zero(memory.address, memory.bytes)

    def zero(self, address: int, size: int) -> None:
        self.cuda.call("cudaMemsetAsync", address, 0, size, self.handle)

    def capture(self, work: Callable[[], None]) -> Any:
        """Capture what `work` enqueues on the lane as a graph, without running it; for any number of launches."""
        # Other threads may allocate and synchronise meanwhile; only this one must not.
        mode = self.cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cuda.call("cudaStreamBeginCapture", self.handle, mode)
        try:
            work()
        finally:
            captured = self.cuda.call("cudaStreamEndCapture", self.handle)
        graph = self.cuda.call("cudaGraphInstantiate", captured, 0)
        self.cuda.call("cudaGraphDestroy", captured)
        return graph

    def launch(self, graph: Any) -> None:
        self.cuda.call("cudaGraphLaunch", graph, self.handle)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Name the work that is enqueued inside, for traces."""
        if self.trace is None:
            yield
            return
        begin, end = Event(self.cuda, timing=True), Event(self.cuda, timing=True)
        self.record(begin)
        with self.trace.range(self.name, name):
            yield
        self.record(end)
        self.trace.add(self.name, name, begin, end)
