"""What all streams of a TensorRT bundle share: engines, constants, lanes and their scratch memory."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import Any

import numpy as np
from cuda.bindings import runtime
from numpy.typing import NDArray

from ...bundle import Bundle
from ...bundle.plans import require_runnable, require_scales
from ...errors import BackendError, PlanError
from ...gpu import require_tensorrt_driver
from ...plugin import load_plugin
from ..base import GRAPHS
from ..device import require_gpu, require_kernels
from .cuda import Cuda, DeviceMemory, Lane
from .engine import Engine, make_logger

try:
    import tensorrt
except ImportError:
    raise
except Exception as error:  # raised by TensorRT's own start-up where its libraries are missing
    raise ImportError(f"TensorRT does not load: {error}", name="tensorrt") from error


class Resources:
    """The engines of a bundle, loaded on the first GPU of this process.

    Attributes:
        manifest, engines, constants (addresses), in_place (of the ring), kernels, cuda: used by streams.
        encode, denoise, decode: the lanes. lane_of: the lane of each graph. scratch: memory of each lane, by its name.
        turn: held while a chunk is enqueued on the lanes. creating: held while an execution context is created.

    Raises:
        BackendError: no GPU, an old driver, no kernels, no plans, or no plugin that they need.
        PlanError: plans for another TensorRT or GPU, or of another LipStream.
        GpuMemoryError: the weights do not fit.
    """

    def __init__(self, bundle: Bundle) -> None:
        plans = bundle.manifest.plans
        if plans is None:
            raise BackendError(
                f"{bundle.path} holds ONNX graphs, not TensorRT plans",
                expected="a bundle that lipstream build wrote",
                fix=f"lipstream build {bundle.path} -o PLANS",
            )
        what = 'backend "tensorrt"'
        driver = require_gpu(what)
        require_tensorrt_driver(driver, what)
        gpu = driver.gpus[0]
        self.kernels = require_kernels(what)
        require_runnable(plans, bundle.path, tensorrt=tensorrt.__version__, gpu=gpu)
        self.manifest, self.in_place = bundle.manifest, plans.in_place
        self.cuda = cuda = Cuda(runtime)
        cuda.call("cudaSetDevice", 0)
        self._logger = make_logger(tensorrt)
        if plans.ring == "plugin":
            load_plugin(tensorrt)
        self._runtime = tensorrt.Runtime(self._logger)
        if plans.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such plans carry the part of TensorRT that runs them
        self.engines = {name: Engine(tensorrt, self._runtime, bundle.file(f"{name}.plan")) for name in GRAPHS}
        self._check(bundle)
        require_scales(
            plans,
            bundle.path,
            layers=self.manifest.geometry.num_layers,
            fp8=self.engines["denoiser"].tensors["k.0"].dtype == "FP8",
        )
        self.encode, self.denoise, self.decode = (Lane(cuda, name) for name in ("encode", "denoise", "decode"))
        self.lanes = (self.encode, self.denoise, self.decode)
        self.lane_of = {
            "video_encoder": self.encode,
            "audio_encoder": self.encode,
            "denoiser": self.denoise,
            "video_decoder": self.decode,
        }
        # One block for each lane: lanes run in parallel, the tasks of a lane one after the other.
        self.scratch = {
            lane.name: DeviceMemory(
                cuda, {"all": max(self.engines[name].scratch for name, of in self.lane_of.items() if of is lane)}
            )
            for lane in self.lanes
        }
        self._upload(bundle)
        self.turn = FairLock()
        self.creating = threading.Lock()  # TensorRT does not say that several threads may do it at once

    def _check(self, bundle: Bundle) -> None:
        """Raise PlanError unless inputs and outputs fit the streams: float32, except those kept on the device."""
        kept = ("memory", "k.", "v.", "k_out.", "v_out.", "text_")
        for graph, engine in self.engines.items():
            for name, tensor in engine.tensors.items():
                integer = name in ("slot", "attended")
                if not name.startswith(kept) and tensor.dtype != ("INT64" if integer else "FLOAT"):
                    raise PlanError(
                        f"{graph} of {bundle.path} takes {name} as {tensor.dtype}",
                        expected="float32 outside the graphs",
                        fix="build it again with this version: lipstream build",
                    )
            rings = {name: name.replace("_out", "") for name in engine.tensors if name.startswith(("k_out.", "v_out."))}
            if engine.aliases != (rings if self.in_place else {}):
                raise PlanError(
                    f"{graph} of {bundle.path} does not write the ring where its recipe says",
                    expected="in place" if self.in_place else "into other memory",
                    fix="build it again with this version: lipstream build",
                )

    def _upload(self, bundle: Bundle) -> None:
        """Copy the constants to the device, in the types that the engines take."""
        types = {name: tensor.dtype for engine in self.engines.values() for name, tensor in engine.tensors.items()}
        arrays: dict[str, NDArray[Any]] = {}
        for name, x in bundle.constants.items():
            array = np.ascontiguousarray(x, np.float32)
            arrays[name] = to_bfloat16(array) if types.get(name) == "BF16" else array
        self._constants = DeviceMemory(self.cuda, {name: array.nbytes for name, array in arrays.items()})
        self.constants = self._constants.at
        for name, array in arrays.items():
            self.encode.upload(self.constants[name], array)
        self.encode.synchronize()


def to_bfloat16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite float32 rounded to bfloat16, to nearest and ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class FairLock:
    """A lock that is granted in the order of the requests, so that no session overtakes another."""

    def __init__(self) -> None:
        self._inner = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._held = False

    def __enter__(self) -> None:
        with self._inner:
            if not self._held:
                self._held = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # released by the previous holder, which passes the lock on

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._inner:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False
