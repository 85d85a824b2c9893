"""TensorRT engines: loaded plans, and tasks, which bind an engine to addresses."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import GpuMemoryError, LipStreamInternalError, PlanError
from .cuda import Cuda, DeviceMemory, Lane

log = logging.getLogger("lipstream.tensorrt")

_SIZES = {"FLOAT": 4, "BF16": 2, "HALF": 2, "INT64": 8, "FP8": 1}
"""Bytes of the types of the graphs' inputs and outputs."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine. Attributes: shape: -1 for a variable size. dtype: TensorRT's name. output."""

    shape: tuple[int, ...]
    dtype: str
    output: bool

    @property
    def itemsize(self) -> int:
        return _SIZES[self.dtype]

    @property
    def bytes(self) -> int:
        """Size in bytes of a tensor with fixed shape."""
        size = self.itemsize
        for length in self.shape:
            size *= length
        return size


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that writes to the logger `lipstream.tensorrt`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            levels = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}
            log.log(levels.get(severity.name, logging.DEBUG), message)

    return Logger()


def _reader(trt: Any, path: Path) -> Any:
    class Reader(trt.IStreamReaderV2):  # type: ignore[misc]
        """Reads a plan in pieces, so that the host holds no second copy of the weights."""

        MOST = 64 << 20

        def __init__(self) -> None:
            trt.IStreamReaderV2.__init__(self)
            self.file = path.open("rb")

        def read(self, num_bytes: int, stream: int) -> bytes:
            return self.file.read(min(num_bytes, self.MOST))

        def seek(self, offset: int, where: Any) -> bool:
            self.file.seek(offset, int(where))
            return True

    return Reader()


class Engine:
    """One plan, read into memory; all streams share it.

    Attributes:
        tensors: by name. aliases: outputs that must have the address of an input. scratch: bytes that a run needs.
    """

    def __init__(self, trt: Any, runtime: Any, path: Path) -> None:
        self._trt, self._path = trt, path
        reader = _reader(trt, path)
        try:
            self._engine = runtime.deserialize_cuda_engine(reader)
        finally:
            reader.file.close()
        if self._engine is None:
            raise PlanError(
                f"TensorRT {trt.__version__} cannot load {path}; see the log (lipstream.tensorrt)",
                expected="a plan built for this GPU, and memory for its weights",
                fix="nvidia-smi; lipstream build BUNDLE -o PLANS",
            )
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.tensors = {
            name: Tensor(
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_dtype(name).name,
                engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT,
            )
            for name in names
        }
        for name, tensor in self.tensors.items():
            if tensor.dtype not in _SIZES or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise LipStreamInternalError(f"{path.name}: {name} is {tensor.dtype}, or not on the device")
        found = {name: engine.get_aliased_input_tensor(name) for name, tensor in self.tensors.items() if tensor.output}
        self.aliases: dict[str, str] = {output: aliased for output, aliased in found.items() if aliased}
        self.scratch: int = engine.device_memory_size_v2

    def profile(self, name: str, length: int) -> int:
        """The optimisation profile in which `name` has `length` rows."""
        for i in range(self._engine.num_optimization_profiles):
            if self._engine.get_tensor_profile_shape(name, i)[1][0] == length:
                return i
        raise PlanError(f"{self._path} has no profile for {length} rows of {name}", fix="lipstream build")

    def context(self) -> Any:
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise GpuMemoryError(
                f"no memory for one more context of {self._path.name}", fix="close a session, or use a smaller bundle"
            )
        return context


class Task:
    """An engine bound to fixed addresses: run directly the first time, later as a captured graph.

    Creating one takes time, and enqueues nothing on the lane. The first launch binds it: choosing a profile is work on
    the lane, which another thread may be capturing until then.

    Args:
        addresses: of every tensor. scratch: shared by tasks of the same lane, which never run at the same time.
        shapes: of the inputs of variable size, in optimisation profile `profile`.
    """

    def __init__(
        self,
        engine: Engine,
        lane: Lane,
        addresses: Mapping[str, int],
        scratch: DeviceMemory,
        *,
        profile: int = 0,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._engine, self._lane, self._addresses, self._scratch = engine, lane, addresses, scratch
        self._profile, self._shapes = profile, shapes or {}
        self._bound = False
        self._graph: Any = None
        self._context = engine.context()

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def launch(self) -> None:
        if self._graph is not None:
            self._lane.launch(self._graph)
            return
        if not self._bound:
            self._bind()
        self._enqueue()

    def capture(self) -> None:
        """Capture the graph. Call it after a direct run: one-time work for new shapes cannot be captured."""
        self._graph = self._lane.capture(self._enqueue)
        cuda: Cuda = self._lane.cuda
        weakref.finalize(self, cuda.call, "cudaGraphExecDestroy", self._graph).atexit = False

    def _bind(self) -> None:
        context, addresses = self._context, self._addresses
        context.set_device_memory(self._scratch.address, self._scratch.bytes)
        done = []
        if self._profile:
            done.append(context.set_optimization_profile_async(self._profile, int(self._lane.handle)))
        done += [context.set_input_shape(name, shape) for name, shape in self._shapes.items()]
        done += [context.set_tensor_address(name, addresses[name]) for name in self._engine.tensors]
        if not all(done) or context.infer_shapes():
            raise LipStreamInternalError("TensorRT rejects an address or shape of its own engine")
        self._bound = True

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._lane.handle)):
            raise LipStreamInternalError("TensorRT rejected a run; see the log (lipstream.tensorrt)")
