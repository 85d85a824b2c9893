"""Self-attention over a whole clip in one call, for training: each chunk attends to what it would in a stream."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import StudentConfig
from .dit import attention
from .ring import RingGeometry
from .rope import rotate, spatial_angles, temporal_angles, token_angles


class ClipAttention:
    """Attention over `frames` latent frames.

    Bidirectional: every token attends to every token; frames are numbered 0, 1, 2, ...
    Causal (the student): each chunk attends, without a mask, to the frames that the ring would hold for it. Frame
    indices are absolute. The sink is rotated again for each chunk, as the ring does.

    Args:
        sink_moves: False keeps the sink at its index in the clip, as upstream does in its first stage.
        dtype: of the rotation tables. bfloat16 trains faster and equals float32 within its rounding.
    """

    def __init__(
        self,
        config: StudentConfig,
        frames: int,
        *,
        causal: bool,
        dtype: torch.dtype = torch.float32,
        sink_moves: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self._tokens = config.tokens
        own = torch.arange(frames)
        seen = [(slice(0, frames), own, own)]  # per chunk: its frames, the frames it attends to, their indices
        if causal:
            geometry, c = RingGeometry(config.window, config.sink, config.chunk_frames), config.chunk_frames
            seen = []
            for chunk in range(frames // c):
                position = geometry.at(chunk)
                end = c * (chunk + 1)
                rolling = torch.arange(end - (position.valid - position.anchored), end)
                sink = torch.arange(position.anchored)
                shift = position.shift if sink_moves else 0
                seen.append((slice(end - c, end), torch.cat([sink, rolling]), torch.cat([sink + shift, rolling])))
        spatial = spatial_angles(config.grid, config.head_dim)

        def tables(indices: Tensor) -> tuple[Tensor, Tensor]:
            angles = token_angles(temporal_angles(indices, config.head_dim), spatial).flatten(0, 1)[:, None]
            return angles.cos().to(device, dtype), angles.sin().to(device, dtype)

        self._own = tables(own)
        self._seen = [
            (chunk, frames, None if torch.equal(frames, indices) else tables(indices))
            for chunk, frames, indices in seen
        ]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, frames * tokens, H, D], not yet rotated -> attention output of that shape."""
        q, rotated = rotate(q, *self._own), rotate(k, *self._own)
        q, k, v, rotated = (torch.unflatten(x, 1, (-1, self._tokens)) for x in (q, k, v, rotated))
        out = []
        for chunk, frames, tables in self._seen:
            keys = rotated[:, frames].flatten(1, 2) if tables is None else rotate(k[:, frames].flatten(1, 2), *tables)
            out.append(attention(q[:, chunk].flatten(1, 2), keys, v[:, frames].flatten(1, 2)))
        return torch.cat(out, dim=1)
