"""The CUDA kernels of the K/V ring, see `_native`, between a chunk's passes, see `lipstream.backends.sampler`, of
pictures, which are bytes on the host and float32 planes in the graphs, and of compositing, see `lipstream.face`.

Built only where a CUDA compiler was found.

Arrays are device addresses (int) on the current device, of the type that `dtype` names; angles, weights and scales are
float32. `float8_e4m3` are codes of an FP8 ring, heads first, which stand for code * scale. `ring_shape` is [F, T, H, D]
of `k_ring` and `v_ring`; with `heads_first` they lie as [H, F T, D], and the sink's copy as [H, S T, D], S the slots
behind the rolling ones. `ring_keep` and `ring_anchor` take the address of one layer, or those of all layers, which are
then done in one launch (of up to 64). Work is enqueued on `stream` (a cudaStream_t; 0 is the default one) and not
waited for, so it may be captured in a CUDA graph. The caller must ensure that the addresses are valid.

Raises ValueError for a shape, range, dtype or a null or unaligned address (K and V: 2 elements; 16 bytes is fastest),
before anything is enqueued; RuntimeError with CUDA's error if a launch fails, e.g. without a device.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

_DType: TypeAlias = Literal["float32", "float16", "bfloat16", "float8_e4m3"]
_Layers: TypeAlias = int | Sequence[int]

def device_count() -> int:
    """CUDA devices that can be used; 0 without a driver."""

def synchronize(stream: int = 0) -> None:
    """Wait for all work on `stream`."""

def ring_write(
    k_ring: int,
    v_ring: int,
    k: int,
    v: int,
    k_weight: int,
    slot: int,
    cos_t: int,
    sin_t: int,
    cos_s: int,
    sin_s: int,
    *,
    ring_shape: Sequence[int],
    frames: int,
    temporal_pairs: int,
    eps: float,
    dtype: _DType,
    k_scale: int = 0,
    v_scale: int = 0,
    stream: int = 0,
) -> None:
    """What the TensorRT plugin enqueues: `frames` frames of K and V into rings that are heads first.

    `k` and `v` [c T, H D] are of `dtype`, or bfloat16 for an FP8 ring, whose scales are then needed. K is normalised
    over the row, rounded, multiplied by `k_weight` [H D] and rotated in float32, and rounded; angles as of
    `_native.ring_write`. An FP8 ring's codes are of these numbers divided by the scale, and at most 448.
    """

def ring_keep(
    k_ring: _Layers,
    v_ring: _Layers,
    sink_base: _Layers,
    slot: int,
    rolling: int,
    first: int,
    count: int,
    *,
    ring_shape: Sequence[int],
    dtype: _DType,
    heads_first: bool = False,
    stream: int = 0,
) -> None:
    """Save `count` frames into the sink; see `_native.ring_keep`."""

def ring_anchor(
    k_ring: _Layers,
    sink_base: _Layers,
    rolling: int,
    count: int,
    cos: int,
    sin: int,
    *,
    ring_shape: Sequence[int],
    temporal_pairs: int,
    dtype: _DType,
    heads_first: bool = False,
    stream: int = 0,
) -> None:
    """Fill the first `count` sink slots, rotated forward; see `_native.ring_anchor`.

    Codes of an FP8 ring are rotated, and rounded again, as numbers of scale 1.
    """

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

def unpack_pictures(planes: int, bytes: int, *, picture_shape: Sequence[int], stream: int = 0) -> None:
    """`planes` float32 [n, 3, H, W] = `bytes` uint8 [n, H, W, 3] / 255; `picture_shape` is [n, H, W]."""

def pack_pictures(bytes: int, not_finite: int, planes: int, *, picture_shape: Sequence[int], stream: int = 0) -> None:
    """`bytes` uint8 [n, H, W, 3] = `planes` float32 [n, 3, H, W], clamped to [0, 1], times 255, rounded half to even.

    `not_finite` int32 [1] becomes 1 if a value is infinite or NaN, and stays as it is otherwise.
    """

def colour_offset(
    offset: int, generated: int, wanted: int, trusted: int, *, size: int, cells: int, stream: int = 0
) -> None:
    """`offset` [cells, cells, 3] of the colour of `generated` uint8 [size, size, 3], as `Compositor` computes it.

    `wanted` [cells, cells, 3] and `trusted` [cells, cells] are those of an overlay and its mask; up to 32 cells.
    """

def corrected_part(
    part: int,
    generated: int,
    offset: int,
    *,
    size: int,
    cells: int,
    shown: Sequence[int],
    block: int,
    pad: int,
    stream: int = 0,
) -> None:
    """`part` [h, w, 4]: what `Filter.prepared` makes of the part `shown` (x0, y0, x1, y1) of `generated`.

    The offset, resized linearly to the picture, is added first. h is ceil(shown height / block) + 2 pad; w likewise.
    """

def render(
    block: int,
    picture: int,
    filter_x: int,
    filter_y: int,
    alpha: int,
    *,
    region: Sequence[int],
    picture_shape: Sequence[int],
    to_picture: Sequence[float],
    taps: Sequence[int],
    alpha_shape: Sequence[int],
    to_alpha: Sequence[float],
    stream: int = 0,
) -> None:
    """`_native.render` of the pixels `region` (x0, y0, x1, y1), strength 1; matrices row by row, `taps` along x, y."""

def blend(
    samples: int,
    block: int,
    weights_x: int,
    weights_y: int,
    *,
    shape: Sequence[int],
    block_shape: Sequence[int],
    first: Sequence[int],
    step: Sequence[int],
    taps: Sequence[int],
    row: Sequence[float],
    most: float,
    dtype: Literal["uint8", "uint16"],
    stream: int = 0,
) -> None:
    """`_native.blend` of `samples` `shape` [h, w], the region alone; pairs but shapes are along x and y."""
