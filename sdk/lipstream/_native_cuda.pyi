"""The CUDA kernels of the K/V ring, see `_native`, and between a chunk's passes, see `lipstream.backends.sampler`.

Built only where a CUDA compiler was found.

Arrays are device addresses (int) on the current device, float32 or bfloat16 as `dtype` says, angles always float32.
`ring_shape` is [F, T, H, D] of `k_ring` and `v_ring`; with `heads_first` they lie as [H, F T, D], and the sink's copy
as [H, S T, D], S the slots behind the rolling ones. Work is enqueued on `stream` (a cudaStream_t; 0 is the default
one) and not waited for, so it may be captured in a CUDA graph. The caller must ensure that the addresses are valid.

Raises ValueError for a shape, range, dtype or a null or unaligned address (K and V: 2 elements; 16 bytes is fastest),
before anything is enqueued; RuntimeError with CUDA's error if a launch fails, e.g. without a device.
"""

from collections.abc import Sequence
from typing import Literal

def device_count() -> int:
    """CUDA devices that can be used; 0 without a driver."""

def synchronize(stream: int = 0) -> None:
    """Wait for all work on `stream`."""

def ring_write(
    k_ring: int,
    v_ring: int,
    k: int,
    v: int,
    slot: int,
    cos_t: int,
    sin_t: int,
    cos_s: int,
    sin_s: int,
    *,
    ring_shape: Sequence[int],
    frames: int,
    temporal_pairs: int,
    dtype: Literal["float32", "bfloat16"],
    stream: int = 0,
) -> None:
    """Write a chunk of `frames` frames; see `_native.ring_write`."""

def ring_keep(
    k_ring: int,
    v_ring: int,
    sink_base: int,
    slot: int,
    rolling: int,
    first: int,
    count: int,
    *,
    ring_shape: Sequence[int],
    dtype: Literal["float32", "bfloat16"],
    heads_first: bool = False,
    stream: int = 0,
) -> None:
    """Save `count` frames into the sink; see `_native.ring_keep`."""

def ring_anchor(
    k_ring: int,
    sink_base: int,
    rolling: int,
    count: int,
    cos: int,
    sin: int,
    *,
    ring_shape: Sequence[int],
    temporal_pairs: int,
    dtype: Literal["float32", "bfloat16"],
    heads_first: bool = False,
    stream: int = 0,
) -> None:
    """Fill the first `count` sink slots, rotated forward; see `_native.ring_anchor`."""

def assemble_condition(
    condition: int,
    first: int,
    mask: int,
    masked: int,
    sequence: int,
    *,
    latent_shape: Sequence[int],
    stream: int = 0,
) -> None:
    """`backends.sampler.assemble_condition` for latents float32 `latent_shape` [C, c, h, w]; `first` is [C, h, w]."""

def advance(
    next: int,
    clean: int,
    x: int,
    velocity: int,
    noise: int,
    *,
    t: float,
    next_t: float,
    count: int,
    stream: int = 0,
) -> None:
    """`clean` = `predict_x0` of `x`; with noise (not 0) also `next` = `add_noise` of that at `next_t`; it may be `x`.

    All float32 [count]; `lipstream.backends.sampler` has the formulas.
    """
