"""What every backend on a GPU needs: the driver, a GPU, and LipStream's kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

from .._native import RingPosition
from ..bundle import Geometry
from ..errors import BackendError
from ..gpu import Driver, NoDriverError, driver


class Kernels(Protocol):
    """Work on device addresses: `lipstream._native_cuda`."""

    def ring_keep(self, *addresses: Any, **sizes: Any) -> None: ...
    def ring_anchor(self, *addresses: Any, **sizes: Any) -> None: ...
    def assemble_condition(self, *addresses: int, **sizes: Any) -> None: ...
    def advance(self, *addresses: int, **sizes: Any) -> None: ...
    def unpack_pictures(self, *addresses: int, **sizes: Any) -> None: ...
    def pack_pictures(self, *addresses: int, **sizes: Any) -> None: ...
    def colour_offset(self, *addresses: int, **sizes: Any) -> None: ...
    def corrected_part(self, *addresses: int, **sizes: Any) -> None: ...
    def render(self, *addresses: int, **sizes: Any) -> None: ...
    def blend(self, *addresses: int, **sizes: Any) -> None: ...
    def synchronize(self) -> None: ...


def move_sink(
    kernels: Kernels,
    geometry: Geometry,
    position: RingPosition,
    layers: Iterable[tuple[int, int, int]],
    turn: tuple[int, int],
    *,
    keep: bool = True,
    **options: Any,
) -> None:
    """Prepare rings on the device for a chunk: see `lipstream.backends.ring.Ring.begin`.

    Args:
        layers: addresses of K, V and the sink's copy of K, per layer.
        turn: addresses of the cosines and sines [pairs] that rotate the sink to the window's start.
        keep: False if the chunk is started again: the frames were moved to the sink the first time.
        options: dtype, heads_first, stream of the kernels.
    """
    g, p = geometry, position
    shape = {"ring_shape": (g.window, g.tokens, g.num_heads, g.head_dim), **options}
    rolling, pairs = g.window - g.sink, g.head_dim // 2 - 2 * (g.head_dim // 6)
    k, v, sink = map(list, zip(*layers, strict=True))  # all layers in one launch
    if p.keep_count and keep:
        kernels.ring_keep(k, v, sink, p.keep_slot, rolling, p.keep_first, p.keep_count, **shape)
    if p.anchored:
        kernels.ring_anchor(k, sink, rolling, p.anchored, *turn, temporal_pairs=pairs, **shape)


def require_gpu(what: str) -> Driver:
    """The driver of this machine, with at least one GPU. `what` names the caller in the error message.

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
    """The CUDA kernels. Raises BackendError if LipStream was built without them."""
    try:
        from .. import _native_cuda
    except ImportError as error:
        raise BackendError(
            f"{what}: this LipStream was built without its CUDA kernels ({error})",
            expected="nvcc when LipStream is built",
            fix="install the CUDA toolkit, then pip install --force-reinstall --no-deps . in the checkout",
        ) from error
    return cast(Kernels, _native_cuda)
