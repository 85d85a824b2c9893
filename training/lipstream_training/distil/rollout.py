"""Generation by the student as in a stream, for a batch and with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lipstream_models import CausalDiT
from lipstream_models.config import StudentConfig
from lipstream_models.dit import attention
from lipstream_models.ring import RingGeometry
from lipstream_models.rope import rotate, spatial_angles, temporal_angles, token_angles
from lipstream_models.schedule import add_noise, predict_x0
from torch import Tensor

TextKV = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """A batch of clips.

    Attributes:
        target: latents of the video [B, C, F, h, w]. condition: [B, 3 C + 1, F, h, w]. audio: [B, 4 F, A].
        clips: their numbers in the data.
    """

    target: Tensor
    condition: Tensor
    audio: Tensor
    clips: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Batch:
        return Batch(self.target.to(device), self.condition.to(device), self.audio.to(device), self.clips)


class Ring:
    """The K/V ring for a batch: each chunk attends to what `lipstream_models.KVRing` holds for it.

    Slots are not reused, since gradients need their old contents; stored K and V are detached, so that no gradient
    flows from one chunk into another. The sink is rotated forward for each chunk; other frames are rotated once.

    Attributes:
        chunks: for each chunk so far and each layer the sink's K, rotated K and V, [B, rows, H, D]; emptied when they
            are no longer attended.
        cleared: K and V of earlier chunks, the sink's too, are read as zeros from now on.
    """

    def __init__(self, config: StudentConfig, device: torch.device | None = None) -> None:
        self.config = config
        self.geometry = RingGeometry(config.window, config.sink, config.chunk_frames)
        self.chunks: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        self.cleared = False
        self._spatial, self._device = spatial_angles(config.grid, config.head_dim), device

    def tables(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [frames * tokens, 1, D / 2]."""
        angles = token_angles(temporal_angles(frames, self.config.head_dim), self._spatial).flatten(0, 1)[:, None]
        return angles.cos().float().to(self._device), angles.sin().float().to(self._device)


class ChunkAttention:
    """Self-attention of one chunk over the ring's present contents, which a later backward pass also uses.

    Args:
        keep: store the chunk's K and V in the ring, for the chunks after it.
    """

    def __init__(self, ring: Ring, chunk: int, *, keep: bool = False) -> None:
        self._ring = ring
        position, c = ring.geometry.at(chunk), ring.config.chunk_frames
        end = c * (chunk + 1)
        first = (end - (position.valid - position.anchored)) // c  # chunk with which the rolling part begins
        self._own = ring.tables(torch.arange(end - c, end))
        self._sink = ring.tables(torch.arange(position.anchored) + position.shift)
        self._anchored = position.anchored * ring.config.tokens
        self._sink_rows = ring.config.sink * ring.config.tokens if chunk == 0 else 0
        self._begin = ring.chunks[0] if position.anchored else []
        self._before = ring.chunks[first:chunk]
        self._kept: list[tuple[Tensor, Tensor, Tensor]] | None = None
        if first > 1:
            ring.chunks[first - 1] = []
        if keep:
            self._kept = []
            ring.chunks.append(self._kept)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, chunk * tokens, H, D], not yet rotated -> attention output."""
        turned = rotate(k, *self._own)
        keys, values = ([kept[layer][i] for kept in self._before] for i in (1, 2))
        if self._anchored:
            sink_k, _, sink_v = self._begin[layer]
            keys.insert(0, rotate(sink_k, *self._sink))
            values.insert(0, sink_v[:, : self._anchored])
        if self._ring.cleared:
            keys, values = ([torch.zeros_like(x) for x in past] for past in (keys, values))
        if self._kept is not None:
            self._kept.append((k[:, : self._sink_rows].detach().clone(), turned.detach(), v.detach()))
        return attention(rotate(q, *self._own), torch.cat([*keys, turned], 1), torch.cat([*values, v], 1))


def roll_out(
    model: CausalDiT,
    batch: Batch,
    text_kv: TextKV,
    draw: Callable[[Tensor], Tensor],
    *,
    exit_step: int | None = None,
    gradient: bool = False,
    kv_cleared: bool = False,
) -> Tensor:
    """Generate the clips of `batch` chunk by chunk, latents [B, C, F, h, w].

    Args:
        draw: unit noise of the shape of its argument.
        exit_step: pass whose x0 is the result; the last if None. The same for all chunks.
        gradient: whether the result has one, through the exit step only; earlier steps, stored K and V and the context
            pass have none.
        kv_cleared: clear the ring at the end, as upstream does: a model with `checkpointing` then computes each block
            again with a past of zeros before it computes the gradient, which so belongs to another function.
    """
    config = model.config
    times = config.t_list[:-1]
    last = len(times) - 1 if exit_step is None else exit_step
    frames, c = batch.target.shape[2], config.chunk_frames
    ring = Ring(config, batch.target.device)
    noise = draw(batch.target)
    made = []
    for chunk in range(frames // c):
        attend = ChunkAttention(ring, chunk)
        now = slice(c * chunk, c * (chunk + 1))
        condition = batch.condition[:, :, now]
        audio = batch.audio[:, config.temporal * c * chunk : config.temporal * c * (chunk + 1)]

        x = noise[:, :, now] * times[0]
        for step in range(last + 1):
            with torch.set_grad_enabled(gradient and step == last):
                x0 = predict_x0(x, _velocity(model, x, times[step], condition, audio, text_kv, attend), times[step])
            if step < last:
                x = add_noise(x0, draw(x0), times[step + 1])
        made.append(x0)
        with torch.no_grad():
            context = ChunkAttention(ring, chunk, keep=True)
            _velocity(model, x0.detach(), 0.0, condition, audio, text_kv, context)
    ring.cleared = kv_cleared
    return torch.cat(made, dim=2)


def _velocity(
    model: CausalDiT, x: Tensor, t: float, condition: Tensor, audio: Tensor, text_kv: TextKV, attend: ChunkAttention
) -> Tensor:
    found: Tensor = model(x, condition, audio, torch.full((len(x), x.shape[2]), t, device=x.device), text_kv, attend)
    return found.to(x.dtype)  # with bfloat16 products it is bfloat16
