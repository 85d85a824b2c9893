"""Self-attention over a whole clip at once, for training: what a stream would see, chunk by chunk, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import StudentConfig
from .dit import attention
from .ring import RingGeometry
from .rope import rotate, spatial_angles, temporal_angles, token_angles


class ClipAttention:
    """Attention over `frames` latent frames.

    Bidirectional (the teacher): every token looks at every token, frames numbered 0, 1, 2, ...
    Causal (the student): a chunk looks at what the ring would hold for it. Its own index is absolute; the sink, which
    the ring turns forward for each chunk, stands there once more for each chunk that sees it so, turned for that chunk.
    """

    def __init__(self, config: StudentConfig, frames: int, *, causal: bool) -> None:
        indices = list(range(frames))
        self._source: list[int] = []
        mask = torch.ones(frames, frames, dtype=torch.bool)
        if causal:
            geometry = RingGeometry(config.window, config.sink, config.chunk_frames)
            c = config.chunk_frames
            seen: list[tuple[int, int]] = []
            mask = torch.zeros(frames, frames, dtype=torch.bool)
            for chunk in range(frames // c):
                position = geometry.at(chunk)
                rolling = position.valid - position.anchored
                mask[c * chunk : c * (chunk + 1), c * (chunk + 1) - rolling : c * (chunk + 1)] = True
                for sink in range(position.anchored):
                    self._source.append(sink)
                    indices.append(sink + position.shift)
                    seen.append((chunk, len(seen)))
            copies = torch.zeros(frames, len(seen), dtype=torch.bool)
            for chunk, copy in seen:
                copies[c * chunk : c * (chunk + 1), copy] = True
            mask = torch.cat([mask, copies], dim=1)
        angles = token_angles(
            temporal_angles(torch.tensor(indices), config.head_dim), spatial_angles(config.grid, config.head_dim)
        )
        self._cos, self._sin = (x.float().flatten(0, 1)[:, None] for x in (angles.cos(), angles.sin()))
        tokens = config.tokens
        self._mask = mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1) if causal else None
        self._frames, self._tokens = frames, tokens

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, frames * tokens, H, D], not yet rotated -> attention output of that shape."""
        q = rotate(q, self._cos[: q.shape[1]], self._sin[: q.shape[1]])
        return attention(q, rotate(self._with_sink(k), self._cos, self._sin), self._with_sink(v), self._mask)

    def _with_sink(self, x: Tensor) -> Tensor:
        if not self._source:
            return x
        return torch.cat([x, torch.unflatten(x, 1, (self._frames, self._tokens))[:, self._source].flatten(1, 2)], dim=1)
