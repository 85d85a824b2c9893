"""The diffusion transformer of Lip Forcing: Wan 2.1's DiT with a 65-channel input and audio, causal over chunks.

The same weights run in two ways:

* `CausalDiT.forward`: a whole clip at once, each frame at its own time t (training; `attend` makes it bidirectional or
  causal);
* `CausalDiT.denoise` and `CausalDiT.context`: one pass over one chunk of a stream with the K/V ring (inference; these
  are exported).

What is constant over a stream is computed separately: `modulation` of the three times, `text_kv` of the prompt.
Module and parameter names are those of the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .config import StudentConfig
from .layers import Conv2d, Conv3d, LayerNorm, Linear

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v), each [B, N, H, D] before any rotation -> attention output [B, N, H, D]."""


class RMSNorm(nn.Module):
    """RMS norm over the full width; rounded to the input's type before the weight, as upstream does."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over [B, N, H, D] tensors, in v's type; `mask` bool [N, M], True = attend."""
    return attention_heads_first(q, k.transpose(1, 2), v.transpose(1, 2), mask)


def attention_heads_first(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `attention`, with k and v [B, H, M, D]."""
    q, k = q.to(v.dtype).transpose(1, 2), k.to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def modulated(norm: nn.LayerNorm, x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """`norm(x) * factor + shift`; where all tokens share shift and factor, in one operation."""
    if shift.numel() == x.shape[-1]:
        return F.layer_norm(x, norm.normalized_shape, factor.flatten(), shift.flatten(), norm.eps)
    return cast(Tensor, norm(x) * factor + shift)


def _with_factors(rows: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale, gate, shift, scale, ... [.., rows, dim] -> each by itself, [.., 1, dim], as factors 1 + scale."""
    return tuple(1 + row if i % 3 == 1 else row for i, row in enumerate(rows.chunk(rows.shape[-2], dim=-2)))


class Attention(nn.Module):
    """Projections of an attention layer, with q and k normalised over the full width."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, -1))

    def query(self, x: Tensor) -> Tensor:
        return self.heads(self.norm_q(self.q(x)))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.norm_k(self.k(x))), self.heads(self.v(x))

    def output(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.o(x.flatten(-2)))


class Block(nn.Module):
    """norm1 -> self-attention, norm3 -> cross-attention, norm2 -> feed-forward (the checkpoint's numbering)."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        dim = config.dim
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.self_attn = Attention(dim, config.num_heads)
        self.norm3 = LayerNorm(dim, eps=1e-6)
        self.cross_attn = Attention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.ffn = nn.Sequential(Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), Linear(config.ffn_dim, dim))

    def text_kv(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded prompt [B, rows, dim] -> K and V of the cross-attention, [B, rows, H, D]."""
        return self.cross_attn.key_value(context)

    def modulate(self, e: Tensor) -> tuple[Tensor, ...]:
        """e [B, F, 6, dim] -> shift, factor, gate of self-attention, then of the feed-forward, each [B, F, 1, dim]."""
        return _with_factors(self.modulation + e)

    def self_attention_input(self, x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
        """[B, F, T, dim] -> normalised and modulated tokens [B, F T, dim]."""
        return modulated(self.norm1, x, shift, factor).flatten(1, 2)

    def forward(
        self, x: Tensor, e: Tensor, text_kv: tuple[Tensor, Tensor], attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """x [B, F, T, dim], e [B, F, 6, dim], text K and V [B, rows, H, D] -> [B, F, T, dim]."""
        k, v = text_kv
        return self.modulated(x, self.modulate(e), (k.transpose(1, 2), v.transpose(1, 2)), attend)

    def modulated(
        self,
        x: Tensor,
        modulation: Sequence[Tensor],
        text_kv: tuple[Tensor, Tensor],
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """`forward`, with the six tensors of `modulate`, and text K and V [B, H, rows, D]."""
        frames = x.shape[1]
        shift_sa, factor_sa, gate_sa, shift_ff, factor_ff, gate_ff = modulation
        h = self.self_attention_input(x, shift_sa, factor_sa)
        y = self.self_attn.output(attend(self.self_attn.query(h), *self.self_attn.key_value(h)))
        x = x + torch.unflatten(y, 1, (frames, -1)) * gate_sa
        h = self.norm3(x).flatten(1, 2)
        y = self.cross_attn.output(attention_heads_first(self.cross_attn.query(h), *text_kv))
        x = x + torch.unflatten(y, 1, (frames, -1))
        return cast(Tensor, x + self.ffn(modulated(self.norm2, x, shift_ff, factor_ff)) * gate_ff)


class Head(nn.Module):
    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        patch = config.patch[0] * config.patch[1] * config.patch[2]
        self.norm = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.head = Linear(config.dim, patch * (config.refine or config.latent_channels))
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, t_emb: Tensor) -> Tensor:
        """x [B, F, T, dim], t_emb [B, F, dim] -> [B, F, T, patch * channels]; the channels are `refine`, if not 0."""
        return self.modulated(x, *_with_factors(self.modulation + t_emb.unsqueeze(2)))

    def modulated(self, x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
        """`forward`, with shift and factor computed."""
        return cast(Tensor, self.head(modulated(self.norm, x, shift, factor)))


class Refinement(nn.Module):
    """Velocity from the features that the head gives each latent pixel, by convolutions across the borders of tokens.

    Tokens are predicted one by one: without it their borders show. The velocity is ``(1 + gate) * noisy latent -
    reference frame - value``; untrained, gate and value are 0, so that the student predicts the reference frame.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.channels, width = config.latent_channels, config.refine
        self.enter = Conv2d(width + 2 * self.channels + 1, width, 3, padding=1)
        self.inner = nn.Sequential(
            nn.GELU(approximate="tanh"),
            Conv2d(width, width, 3, padding=1),
            nn.GELU(approximate="tanh"),
            Conv2d(width, width, 3, padding=1),
        )
        self.leave = Conv2d(width, 2 * self.channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(cast(Tensor, self.leave.bias))

    def forward(self, features: Tensor, latent: Tensor, condition: Tensor) -> Tensor:
        """features [B, R, F, h, w], latent [B, C, F, h, w], condition [B, 3 C + 1, F, h, w] -> velocity as latent."""
        given = torch.cat([features, condition[:, : 2 * self.channels + 1]], dim=1)
        x = self.enter(given.transpose(1, 2).flatten(0, 1))
        gate, value = self.leave(x + self.inner(x)).chunk(2, dim=1)
        gate, value = (
            torch.unflatten(y, 0, (latent.shape[0], -1)).transpose(1, 2).to(latent.dtype) for y in (gate, value)
        )
        return (1 + gate) * latent - condition[:, : self.channels] - value


class AudioPack(nn.Module):
    """Features of the four video frames of a latent frame -> one vector."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.frames = config.temporal
        self.proj = Linear(self.frames * config.audio_dim, config.audio_hidden)
        self.norm_out = LayerNorm(config.audio_hidden)

    def forward(self, audio: Tensor) -> Tensor:
        """audio [B, 4 F, audio_dim] -> [B, F, audio_hidden]."""
        return cast(Tensor, self.norm_out(self.proj(torch.unflatten(audio, 1, (-1, self.frames)).flatten(2))))


class CausalDiT(nn.Module):
    """The diffusion transformer.

    Attributes:
        checkpointing: recompute each block's activations in the backward pass, to save memory.
    """

    checkpointing = False

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = Conv3d(config.in_channels, dim, config.patch, config.patch)
        self.text_embedding = nn.Sequential(Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), Linear(dim, dim))
        self.time_embedding = nn.Sequential(Linear(config.freq_dim, dim), nn.SiLU(), Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.refinement = Refinement(config) if config.refine else None
        self.audio_proj = AudioPack(config)
        self.audio_cond_projs = nn.ModuleList(Linear(config.audio_hidden, dim) for _ in config.audio_layers)

    @property
    def layers(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Times `t` (any shape, in [0, 1]) -> (t_emb [..., dim], modulation [..., 6, dim])."""
        t_emb = self.time_embedding(self.time_features(t).to(self.patch_embedding.weight.dtype))
        return t_emb, torch.unflatten(self.time_projection(t_emb), -1, (6, -1))

    def modulation(self, t_emb: Tensor, e: Tensor) -> Tensor:
        """t_emb [B, dim] and e [B, 6, dim] of `time` -> all that depends on time, [B, 6 L + 2, dim].

        Shift, factor, gate of self-attention, then of the feed-forward, of each block; shift and factor of the head.
        """
        rows = [*(block.modulation + e for block in self.layers), self.head.modulation + t_emb[:, None]]
        return torch.cat([part for of_block in rows for part in _with_factors(of_block)], 1)

    def time_features(self, t: Tensor) -> Tensor:
        """Times `t` (any shape, in [0, 1]) -> cosines and sines [..., freq_dim], float64."""
        half = self.config.freq_dim // 2
        w = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
        angles = 1000.0 * t.double()[..., None] * w
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def text_kv(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Prompt embedding [B, text_len, text_dim] -> per layer K and V [B, text_len, H, D] of the cross-attention."""
        context = self.text_embedding(text)
        return [block.text_kv(context) for block in self.layers]

    def embed(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Latent [B, C, F, h, w] and condition [B, 3 C + 1, F, h, w] -> tokens [B, F, T, dim]."""
        x = self.patch_embedding(torch.cat([latent, condition], dim=1))
        return cast(Tensor, x.flatten(3).permute(0, 2, 3, 1))

    def audio(self, features: Tensor) -> dict[int, Tensor]:
        """Features [B, 4 F, audio_dim] -> what is added to the input of each audio layer, [B, F, 1, dim]."""
        packed = self.audio_proj(features)
        layers = zip(self.config.audio_layers, self.audio_cond_projs, strict=True)
        return {layer: project(packed).unsqueeze(2) for layer, project in layers}

    def unpatchify(self, x: Tensor) -> Tensor:
        """[B, F, T, ph pw C] -> [B, C, F, h, w]."""
        batch, frames = x.shape[:2]
        rows, columns = self.config.grid
        _, ph, pw = self.config.patch
        x = x.reshape(batch, frames, rows, columns, ph, pw, -1)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, rows * ph, columns * pw)

    def _velocity(self, x: Tensor, latent: Tensor, condition: Tensor) -> Tensor:
        """Output of the head -> velocity [B, C, F, h, w]."""
        found = self.unpatchify(x)
        return self.refinement(found, latent, condition) if self.refinement is not None else found

    def _run(self, x: Tensor, audio: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Run all blocks on tokens `x`, in the residual's type, with `run`: (layer, tokens) -> tokens."""
        added = self.audio(audio)
        for i in range(len(self.blocks)):
            x = run(i, added[i] + x if i in added else x)
        return x

    def forward(
        self,
        latent: Tensor,
        condition: Tensor,
        audio: Tensor,
        t: Tensor,
        text_kv: Sequence[tuple[Tensor, Tensor]],
        attend: Attend,
    ) -> Tensor:
        """Velocity [B, C, F, h, w] of a whole clip.

        Args:
            latent: noisy latents [B, C, F, h, w].
            condition: [B, 3 C + 1, F, h, w]: reference frame, mask (1 = generate), masked video, reference sequence.
            audio: [B, 4 F, audio_dim]; the first frame's features are repeated four times.
            t: time of each frame, [B, F].
            text_kv: `text_kv` of the prompt.
            attend: self-attention over the clip, `ClipAttention`.
        """
        t_emb, e = self.time(t)

        def run(i: int, x: Tensor) -> Tensor:
            given = self.blocks[i], x, e, text_kv[i], partial(attend, i)
            again = self.checkpointing and torch.is_grad_enabled()
            return cast(Tensor, checkpoint(*given, use_reentrant=False) if again else given[0](*given[1:]))

        x = self._run(self.embed(latent, condition).to(e.dtype), audio, run)
        return self._velocity(self.head(x, t_emb), latent, condition)

    def denoise(
        self,
        latent: Tensor,
        condition: Tensor,
        audio: Tensor,
        modulation: Tensor,
        text_kv: Sequence[tuple[Tensor, Tensor]],
        attend: Attend,
    ) -> Tensor:
        """Velocity [C, F, h, w] of one chunk of a stream; `attend` writes to and reads from its ring.

        Args:
            latent: [C, F, h, w]. condition: [3 C + 1, F, h, w]. audio: [4 F, audio_dim].
            modulation: [6 L + 2, dim] of the pass (`modulation`). text_kv: of each layer, [1, H, rows, D].
        """
        rows = modulation.chunk(len(modulation))

        def run(i: int, x: Tensor) -> Tensor:
            return self.layers[i].modulated(x, rows[6 * i : 6 * i + 6], text_kv[i], partial(attend, i))

        x = self._run(self._tokens(latent, condition, modulation), audio[None], run)
        return self._velocity(self.head.modulated(x, *rows[-2:]), latent[None], condition[None])[0]

    def context(
        self,
        latent: Tensor,
        condition: Tensor,
        audio: Tensor,
        modulation: Tensor,
        text_kv: Sequence[tuple[Tensor, Tensor]],
        attend: Attend,
        leave: Callable[[int, Tensor, Tensor], object],
    ) -> None:
        """Context pass: at t = 0 over a clean chunk, to write its K and V; `leave` gets those of the last layer."""
        rows = modulation.chunk(len(modulation))

        def run(i: int, x: Tensor) -> Tensor:
            block, own = self.layers[i], rows[6 * i : 6 * i + 6]
            if i < len(self.blocks) - 1:
                return block.modulated(x, own, text_kv[i], partial(attend, i))
            leave(i, *block.self_attn.key_value(block.self_attention_input(x, *own[:2])))
            return x

        self._run(self._tokens(latent, condition, modulation), audio[None], run)

    def _tokens(self, latent: Tensor, condition: Tensor, modulation: Tensor) -> Tensor:
        """Tokens of one chunk, [1, F, T, dim], in the residual's type."""
        return self.embed(latent[None], condition[None]).to(modulation.dtype)
