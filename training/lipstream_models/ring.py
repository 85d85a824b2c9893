"""The K/V memory of a stream: a ring of latent frames, written in place, never shifted.

Slots ``[0, R)`` are the rolling part, blocks of one chunk each; slots ``[R, R + S)`` hold the stream's first S frames
(the sink) once their block has been overwritten. Chunk k writes block ``k mod (R / chunk)``, so that the attended
frames are always a prefix of the ring, whose order does not matter to attention.

K is stored already rotated. Upstream numbers the frames of a window 0, 1, 2, ... at every chunk. Attention depends only
on differences of indices, so a rolling frame keeps its absolute index here. The index of the sink must stay at the
window's start, so the sink is rotated forward once per chunk, always from the copy made when it was written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import StudentConfig
from .rope import axis_pairs, rotate, temporal_angles


@dataclass(frozen=True)
class RingPosition:
    """Position of chunk `chunk` in the ring; all counts in latent frames.

    Attributes:
        slot: first slot the chunk writes.
        valid: slots attended, the prefix ``[0, valid)``.
        anchored: sink frames that are in their own slots.
        shift: by how many frames these are rotated forward.
        kept: absolute indices of sink frames that this chunk's block overwrites and that move to the sink first.
    """

    chunk: int
    slot: int
    valid: int
    anchored: int
    shift: int
    kept: range


@dataclass(frozen=True)
class RingGeometry:
    """A window of `window` latent frames, `sink` of them the stream's first, generated `chunk_frames` at a time."""

    window: int
    sink: int
    chunk_frames: int = 3

    def __post_init__(self) -> None:
        if self.sink < 0 or self.chunk_frames < 1:
            raise ValueError(f"sink {self.sink} and chunk_frames {self.chunk_frames} must be at least 0 and 1")
        if self.rolling < self.chunk_frames or self.rolling % self.chunk_frames:
            raise ValueError(
                f"window {self.window} with sink {self.sink}: the rolling part, {self.rolling} latent frames, "
                f"is not a whole number of chunks of {self.chunk_frames}"
            )

    @property
    def rolling(self) -> int:
        return self.window - self.sink

    @property
    def phases(self) -> list[int]:
        """All values that `RingPosition.valid` takes in a stream, ascending."""
        chunks = self.window // self.chunk_frames + 2
        return sorted({self.at(chunk).valid for chunk in range(chunks)})

    def at(self, chunk: int) -> RingPosition:
        """Position of chunk 0, 1, 2, ..."""
        c, blocks = self.chunk_frames, self.rolling // self.chunk_frames
        anchored = min(max(c * (chunk + 1 - blocks), 0), self.sink)
        valid = c * min(chunk + 1, blocks) + anchored
        overwritten = c * max(chunk - blocks, 0) if chunk >= blocks else self.sink
        return RingPosition(
            chunk=chunk,
            slot=c * (chunk % blocks),
            valid=valid,
            anchored=anchored,
            shift=c * (chunk + 1) - valid,
            kept=range(overwritten, max(overwritten, min(overwritten + c, self.sink))),
        )


class KVRing:
    """K and V of every layer of one stream.

    Attributes:
        k, v: per layer a tensor [window, T, H, D]: slots, tokens of a frame, heads, head dimension.
        sink_k: per layer [sink, T, H, D], the sink's K at its own absolute index.
    """

    def __init__(self, config: StudentConfig, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.geometry = RingGeometry(config.window, config.sink, config.chunk_frames)
        self.head_dim = config.head_dim
        frame = (config.tokens, config.num_heads, config.head_dim)

        def zeros(frames: int) -> list[Tensor]:
            return [torch.zeros(frames, *frame, dtype=dtype, device=device) for _ in range(config.num_layers)]

        self.k, self.v, self.sink_k = zeros(config.window), zeros(config.window), zeros(config.sink)
        self.position = self.geometry.at(0)

    def begin(self, chunk: int) -> RingPosition:
        """Prepare the ring for `chunk`: move sink frames out of the block it overwrites, rotate the sink forward."""
        self.position = position = self.geometry.at(chunk)
        rolling = self.geometry.rolling
        pairs = axis_pairs(self.head_dim)[0]
        angles = temporal_angles(torch.tensor([position.shift]), self.head_dim)[0]
        cos, sin = angles.cos().float(), angles.sin().float()
        for k, v, sink_k in zip(self.k, self.v, self.sink_k, strict=True):
            for i, frame in enumerate(position.kept):
                sink_k[frame] = k[position.slot + i]
                v[rolling + frame] = v[position.slot + i]
            base, anchored = sink_k[: position.anchored], k[rolling : rolling + position.anchored]
            anchored.copy_(base)
            anchored[..., : 2 * pairs] = rotate(base[..., : 2 * pairs], cos.to(k.device), sin.to(k.device))
        return position

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the chunk's rotated K and V [chunk_frames, T, H, D]; returns what is attended, [valid, T, H, D]."""
        slots = slice(self.position.slot, self.position.slot + k.shape[0])
        self.k[layer][slots] = k
        self.v[layer][slots] = v
        return self.k[layer][: self.position.valid], self.v[layer][: self.position.valid]
