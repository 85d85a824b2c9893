"""What every backend on a GPU needs: the driver, a GPU, and LipStream's own kernels."""

from __future__ import annotations

from typing import Any, Protocol, cast

from ..errors import BackendError
from ..gpu import Driver, NoDriverError, driver


class Kernels(Protocol):
    """Work on device addresses: `lipstream._native_cuda`."""

    def ring_keep(self, *addresses: int, **sizes: Any) -> None: ...
    def ring_anchor(self, *addresses: int, **sizes: Any) -> None: ...
    def assemble_condition(self, *addresses: int, **sizes: Any) -> None: ...
    def advance(self, *addresses: int, **sizes: Any) -> None: ...
    def synchronize(self) -> None: ...


def require_gpu(what: str) -> Driver:
    """The driver of this machine, which has a GPU. `what` asks for it.

    Raises:
        BackendError: what is missing.
    """
    try:
        found = driver()
    except NoDriverError as error:
        raise BackendError(
            f"{what}: {error}",
            expected="an NVIDIA GPU and its driver",
            fix="install the driver; in a container: docker run --gpus all, with nvidia-container-toolkit",
        ) from error
    if not found.gpus:
        raise BackendError(f"{what}: the driver shows no GPU", fix="nvidia-smi -L")
    return found


def require_kernels(what: str) -> Kernels:
    """The kernels. Raises BackendError where LipStream was built without them."""
    try:
        from .. import _native_cuda
    except ImportError as error:
        raise BackendError(
            f"{what}: this LipStream was built without its CUDA kernels ({error})",
            expected="nvcc where it is installed",
            fix="install the CUDA toolkit, then pip install --force-reinstall --no-deps . in the checkout",
        ) from error
    return cast(Kernels, _native_cuda)
