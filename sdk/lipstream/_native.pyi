"""The K/V ring of one layer: its index arithmetic, and its kernels on NumPy arrays (CPU, in place, without the GIL).

Also `render` and `blend`, the loops over pixels of compositing.

`k_ring` and `v_ring` are [F, T, H, D], F = R + S frame slots of T tokens, H heads and D (even) elements per head. Slots
[0, R) are the blocks that chunks use in turn, slots [R, R + S) the sink. All arrays of a call have the same dtype:
float32, or uint16 holding the bits of bfloat16 (arithmetic is float32, rounding to nearest even). K is stored rotated:
pair j of a head is elements (2j, 2j + 1), times cos + i sin; the leading pairs turn with time, those after with space.

Per chunk: `ring_position`, then per layer `ring_keep`, `ring_anchor`, and `ring_write` for every pass; attention then
runs over slots [0, valid), whose order does not matter.

Every function raises TypeError for an object or dtype, and ValueError for a shape, range, memory layout (strided,
unaligned, read-only, shared between arguments), that it does not support, before anything is written.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_Stored: TypeAlias = NDArray[np.float32] | NDArray[np.uint16]
_Angles: TypeAlias = NDArray[np.float32]

@final
class RingPosition:
    """How one chunk changes the ring. All counts are latent frames."""

    @property
    def chunk(self) -> int:
        """Index of the chunk in the stream, from 0."""
    @property
    def slot(self) -> int:
        """First slot of the block it writes."""
    @property
    def valid(self) -> int:
        """The chunk attends to slots [0, valid)."""
    @property
    def anchored(self) -> int:
        """Sink frames among them: slots [R, R + anchored)."""
    @property
    def shift(self) -> int:
        """Temporal positions by which `ring_anchor` rotates the sink."""
    @property
    def keep_slot(self) -> int:
        """First slot to save with `ring_keep` before the block is written, -1 if none."""
    @property
    def keep_first(self) -> int:
        """Index within the sink of the first frame saved."""
    @property
    def keep_count(self) -> int:
        """Frames to save, 0 if none."""

def ring_position(chunk: int, window: int, sink: int, chunk_frames: int = 3) -> RingPosition:
    """Position of `chunk` (from 0) in a ring of `window` frames, the first `sink` frames of the stream included.

    Raises ValueError if `window` - `sink` is not one or more whole chunks, or a value is out of its range.
    """

def ring_write(
    k_ring: _Stored,
    v_ring: _Stored,
    k: _Stored,
    v: _Stored,
    slot: int,
    cos_t: _Angles,
    sin_t: _Angles,
    cos_s: _Angles,
    sin_s: _Angles,
    threads: int = 0,
) -> None:
    """Write a chunk, `k` and `v` [c, T, H, D], into slots [slot, slot + c): K rotated, V unchanged.

    `cos_t`, `sin_t` [c, P] are for the P temporal pairs of each frame, at its index in the stream; `cos_s`, `sin_s`
    [T, D / 2 - P] for the others. `threads` 0 is automatic; the result is bit-identical for any number.
    """

def ring_keep(
    k_ring: _Stored, v_ring: _Stored, sink_base: _Stored, slot: int, rolling: int, first: int, count: int
) -> None:
    """Save slots [slot, slot + count) as sink frames `first` and on: K into `sink_base` [S, T, H, D], V into the sink
    slots of `v_ring` itself, `rolling` + `first` and on. A `count` of 0 does nothing.
    """

def ring_anchor(
    k_ring: _Stored, sink_base: _Stored, rolling: int, count: int, cos: _Angles, sin: _Angles, threads: int = 0
) -> None:
    """Fill sink slots [rolling, rolling + count) of `k_ring` from `sink_base` [S, T, H, D], rotated forward.

    `cos`, `sin` [P] are the angles of the P temporal pairs for `RingPosition.shift`; the other pairs are copied. Always
    from `sink_base`, so rounding does not add up over a stream.
    """

def ring_call(tensors: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Any]:
    """Result of the TensorRT plugin's check of its inputs, (type, shape) each, in the order of csrc's `ring_call.h`.

    `chunk_frames`, `temporal_pairs`, `slots` and `last_slot`.
    Raises ValueError, which says what was found and expected.
    """

def render(
    block: NDArray[np.float32],
    corner: tuple[int, int],
    strength: float,
    picture: NDArray[np.float32],
    to_picture: NDArray[np.float64],
    filter_x: NDArray[np.float32],
    filter_y: NDArray[np.float32],
    alpha: NDArray[np.float32],
    to_alpha: NDArray[np.float64],
) -> None:
    """Fill `block` [h, w, 4], whose first pixel is the frame's at `corner` (x, y), with what is blended into the frame.

    A pixel becomes the picture, limited to 0..1 and times the opacity a, and a = ``strength * alpha``; all 0 where a
    is not above 0. The maps [2, 3] take pixel centres of the frame to those of each array. The picture [h, w, 4] (red,
    green, blue, 0) is sampled by the filters (`lipstream.media.lanczos`), which have no more taps than it has samples,
    `alpha` [h, w] linearly, 0 around it.
    """

def resample(
    view: NDArray[np.float32],
    plane: NDArray[np.float32],
    to_plane: NDArray[np.float64],
    filter_x: NDArray[np.float32],
    filter_y: NDArray[np.float32],
) -> None:
    """Fill `view` [h, w] with `plane` [H, W] at the places that `to_plane` [2, 3] maps the view's pixel centres to.

    The filters are those of `render`; the first has a multiple of 4 samples.
    """

def blend(
    plane: NDArray[np.uint8] | NDArray[np.uint16],
    region: tuple[int, int, int, int],
    block: NDArray[np.float32],
    first: tuple[int, int],
    step: tuple[int, int],
    weights_x: NDArray[np.float32],
    weights_y: NDArray[np.float32],
    row: Sequence[float],
    most: float,
) -> None:
    """Blend `block` [h, w, 4], as `render` fills it, into the samples `region` (x0, y0, x1, y1) of `plane`, in place.

    Sample i of the region, along each axis, takes the mean over the pixels from ``first + i * step`` of the block on,
    by their weights, [n] each; beyond the block its border is repeated. A sample becomes ``sample + (row[:3] @ rgb +
    row[3] a - a sample)``, rounded to nearest and at most `most`; it is unchanged where the mean opacity a is 0.
    """

def e4m3(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """FP8 codes, rounded to nearest and at most 448, of any shape."""
