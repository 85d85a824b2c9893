"""The NVIDIA GPUs of this machine, queried from the driver's library, without further packages.

Functions and numbers: https://docs.nvidia.com/cuda/cuda-driver-api/ (cuDeviceGetAttribute).
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import asdict, dataclass
from typing import Any

from .errors import BackendError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76
TENSORRT_CUDA = 13
"""Major version of CUDA that TensorRT's packages (tensorrt-cu13) are built for."""
TENSORRT_DRIVER = "install a driver of version 580 or later"
"""What to do about an older driver."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. Attributes: compute_capability: e.g. "9.0". multiprocessors. memory: bytes."""

    name: str
    compute_capability: str
    multiprocessors: int
    memory: int

    def dump(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Driver:
    """The driver. Attributes: cuda: the newest CUDA it can run, e.g. "13.0". gpus: in CUDA's order."""

    cuda: str
    gpus: tuple[Gpu, ...]


class NoDriverError(Exception):
    """There is no driver, or it does not work. The message says which."""


def driver(library: str = LIBRARY) -> Driver:
    """Query driver and GPUs. Raises NoDriverError."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise NoDriverError(f"no NVIDIA driver: {error}") from error

    def call(function: str, *arguments: Any) -> None:
        status = getattr(cuda, function)(*arguments)
        if status:
            raise NoDriverError(f"the NVIDIA driver does not work: {function} gives CUDA error {status}")

    def number(function: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        call(function, ctypes.byref(value), *arguments)
        return value.value

    call("cuInit", 0)
    version = number("cuDriverGetVersion")
    gpus = []
    for ordinal in range(number("cuDeviceGetCount")):
        device = number("cuDeviceGet", ordinal)
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        call("cuDeviceGetName", name, len(name), device)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        major, minor, processors = (
            number("cuDeviceGetAttribute", attribute, device) for attribute in (_MAJOR, _MINOR, _MULTIPROCESSORS)
        )
        gpus.append(Gpu(name.value.decode(errors="replace"), f"{major}.{minor}", processors, memory.value))
    return Driver(f"{version // 1000}.{version % 1000 // 10}", tuple(gpus))


def too_old_for_tensorrt(found: Driver) -> str:
    """Why TensorRT's packages do not run on this driver; empty if they do."""
    if int(found.cuda.split(".")[0]) >= TENSORRT_CUDA:
        return ""
    return f"the driver runs CUDA up to {found.cuda}, and TensorRT's cu{TENSORRT_CUDA} packages need {TENSORRT_CUDA}"


def require_tensorrt_driver(found: Driver, what: str) -> None:
    """Raise BackendError if TensorRT's packages do not run on this driver. `what` names the caller in the message.

    Call it before TensorRT or CUDA's runtime is called: their own errors do not name the driver.
    """
    if problem := too_old_for_tensorrt(found):
        raise BackendError(
            f"{what}: {problem}", expected=f"a driver for CUDA {TENSORRT_CUDA}.0 or later", fix=TENSORRT_DRIVER
        )
