"""`cuda.bindings.runtime` on a `Device`: the functions that the backend calls, as the real module has them."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from .device import Bytes, Device, DeviceError, Event, Work

BANDWIDTH = {1: 25e6, 2: 25e6, 3: 1e9}
"""Assumed bytes per millisecond for each kind of copy."""


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureIsolation = 905


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


def host(address: int, size: int) -> Bytes:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def make(device: Device) -> ModuleType:
    """The module."""
    module = ModuleType("cuda.bindings.runtime")
    for kind in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode):
        setattr(module, kind.__name__, kind)
    module.cudaEventBlockingSync, module.cudaEventDisableTiming = 1, 2  # type: ignore[attr-defined]
    module.cudaStreamNonBlocking = 1  # type: ignore[attr-defined]

    def function(call: Callable[..., Any]) -> None:
        def checked(*arguments: Any) -> tuple[Any, ...]:
            try:
                found = call(*arguments)
            except DeviceError as error:
                return (cudaError_t[error.status], None)
            return (cudaError_t.cudaSuccess,) if found is None else (cudaError_t.cudaSuccess, found)

        checked.__wrapped__ = call  # type: ignore[attr-defined]
        setattr(module, call.__name__, checked)

    @function
    def cudaSetDevice(device: int) -> None:
        assert device == 0

    @function
    def cudaGetErrorName(error: cudaError_t) -> bytes:
        return error.name.encode()

    @function
    def cudaMalloc(size: int) -> int:
        return device.allocate(size)

    @function
    def cudaFree(devPtr: int) -> None:
        device.free(devPtr)

    @function
    def cudaHostAlloc(size: int, flags: int) -> int:
        device.forbid_in_capture("an allocation")
        device.counts["allocations"] += 1
        memory = np.full(size, 0xA5, np.uint8)
        device.pinned[memory.ctypes.data] = memory
        return memory.ctypes.data

    @function
    def cudaFreeHost(ptr: int) -> None:
        device.run_all()
        del device.pinned[ptr]

    @function
    def cudaStreamCreateWithFlags(flags: int) -> int:
        return device.new_stream()

    @function
    def cudaStreamDestroy(stream: int) -> None:
        device.run_all()
        del device.streams[stream]

    @function
    def cudaStreamSynchronize(stream: int) -> None:
        device.synchronize(device.streams[stream].last)

    @function
    def cudaStreamWaitEvent(stream: int, event: int, flags: int) -> None:
        device.wait(stream, device.events[event])

    @function
    def cudaEventCreateWithFlags(flags: int) -> int:
        return device.add(device.events, Event(timing=not flags & 2))

    @function
    def cudaEventDestroy(event: int) -> None:
        del device.events[event]

    @function
    def cudaEventRecord(event: int, stream: int) -> None:
        device.record(device.events[event], stream)

    @function
    def cudaEventSynchronize(event: int) -> None:
        device.synchronize(device.events[event].operation)

    @function
    def cudaEventElapsedTime(start: int, end: int) -> float:
        first, last = device.events[start], device.events[end]
        if not (first.timing and last.timing and first.operation and last.operation):
            raise DeviceError("cudaErrorInvalidValue", "an event without a time")
        if not (first.operation.done and last.operation.done):
            raise DeviceError("cudaErrorNotReady", "an event that has not happened")
        return last.operation.end - first.operation.end

    def place(address: int, size: int, on_device: bool) -> Callable[[], Bytes]:
        if device.is_device(address) != on_device:
            raise DeviceError("cudaErrorInvalidValue", f"{address:#x} is not where the kind of the copy says")
        if on_device:
            device.view(address, size)
            return lambda: device.view(address, size)
        return lambda: host(address, size)

    @function
    def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int) -> None:
        device.counts[kind.name] += 1
        device.counts[f"{kind.name}, bytes"] += count
        source = place(src, count, kind != cudaMemcpyKind.cudaMemcpyHostToDevice)
        target = place(dst, count, kind != cudaMemcpyKind.cudaMemcpyDeviceToHost)
        pinned = any(at <= src and src + count <= at + len(memory) for at, memory in device.pinned.items())
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice and not pinned:
            staged = source().copy()  # what is not pinned is read before the call returns
            source = lambda: staged  # noqa: E731
        device.put(stream, device.copy(target, source, count / BANDWIDTH[kind], "copy"))

    @function
    def cudaMemcpy2DAsync(
        dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: cudaMemcpyKind, stream: int
    ) -> None:
        device.counts[kind.name] += 1
        if width > dpitch or width > spitch:
            raise DeviceError("cudaErrorInvalidValue", "rows wider than their pitch")
        assert kind == cudaMemcpyKind.cudaMemcpyDeviceToDevice
        for row in range(height):
            source, target = place(src + row * spitch, width, True), place(dst + row * dpitch, width, True)
            device.put(stream, device.copy(target, source, width / BANDWIDTH[kind], "copy"))

    @function
    def cudaMemsetAsync(devPtr: int, value: int, count: int, stream: int) -> None:
        def fill(_: Any) -> None:
            device.view(devPtr, count)[:] = value

        device.put(stream, Work("memset", lambda: None, fill))

    @function
    def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> None:
        device.begin_capture(stream)

    @function
    def cudaStreamEndCapture(stream: int) -> int:
        return device.end_capture(stream)

    @function
    def cudaGraphInstantiate(graph: int, flags: int) -> int:
        return device.add(device.graphs, device.graphs[graph])

    @function
    def cudaGraphDestroy(graph: int) -> None:
        del device.graphs[graph]

    @function
    def cudaGraphExecDestroy(graphExec: int) -> None:
        del device.graphs[graphExec]

    @function
    def cudaGraphLaunch(graphExec: int, stream: int) -> None:
        device.launch(device.graphs[graphExec], stream)

    return module
