"""The graph `denoiser`: one pass of the DiT over one chunk, with the ring as input and output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lipstream_models import CausalDiT, StudentConfig
from lipstream_models.dit import attention
from lipstream_models.rope import axis_pairs, spatial_angles
from torch import Tensor, nn

from .ring_function import join_tables, kv_ring_write, rotate_tokens


class RingAttention:
    """Self-attention of a chunk over the ring.

    Args:
        write: (layer, k, v), K not yet rotated, each [c, T, H, D] -> the attended K and V, [valid, T, H, D].
        cos, sin: [c, T, D/2] of the chunk's own tokens.
        student: its layers' attention is used; a module `operands` in a layer's `self_attn` rounds Q, K and V.
    """

    def __init__(
        self,
        write: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
        cos: Tensor,
        sin: Tensor,
        student: CausalDiT,
    ) -> None:
        self._write, self._student = write, student
        self._frames = cos.shape[0]
        self._cos, self._sin = cos.flatten(0, 1)[None], sin.flatten(0, 1)[None]

    def leave(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write K and V [1, c T, H, D] of the chunk; returns what is attended, [1, valid T, H, D]."""
        k, v = (torch.unflatten(x.squeeze(0), 0, (self._frames, -1)) for x in (k, v))
        k, v = self._write(layer, k, v)
        return k.flatten(0, 1)[None], v.flatten(0, 1)[None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rotate_tokens(q, self._cos, self._sin)
        k, v = self.leave(layer, k, v)
        operands = getattr(self._student.layers[layer].self_attn, "operands", None)
        return attention(*operands(q.to(v.dtype), k, v)) if operands else attention(q, k, v)


class RingPass(nn.Module):
    """One pass as a function of tensors. All passes of a chunk run it; the context pass ignores the velocity.

    Inputs, in order (c = chunk frames, A = audio features, D = head dimension, F = attended frames):
        latent [C, c, h, w], condition [3 C + 1, c, h, w], audio [4 c, A], modulation [6 L + 2, dim],
        rope_cos and rope_sin [c, time pairs], slot int64 [1],
        text_k.i and text_v.i [H, rows, D] of each layer, k.i and v.i [F, T, H, D] of each layer.
    K, V and the text are in the type of the products, `slot` is int64, all else is float32.
    Outputs: velocity [C, c, h, w], k_out.i and v_out.i of each layer.
    """

    spatial_cos: Tensor
    spatial_sin: Tensor

    def __init__(self, student: CausalDiT) -> None:
        super().__init__()
        self.student = student
        angles = spatial_angles(student.config.grid, student.config.head_dim)
        self.register_buffer("spatial_cos", angles.cos().float(), persistent=False)
        self.register_buffer("spatial_sin", angles.sin().float(), persistent=False)

    @property
    def input_names(self) -> list[str]:
        fixed = ["latent", "condition", "audio", "modulation", "rope_cos", "rope_sin", "slot"]
        return fixed + self._per_layer("text_k", "text_v") + self._per_layer("k", "v")

    @property
    def output_names(self) -> list[str]:
        return ["velocity", *self._per_layer("k_out", "v_out")]

    def _per_layer(self, *names: str) -> list[str]:
        return [f"{name}.{i}" for i in range(self.student.config.num_layers) for name in names]

    def example(self) -> tuple[Tensor, ...]:
        """Inputs for tracing, with a full ring."""
        c = self.student.config
        weight = self.student.patch_embedding.weight
        ring = (c.window, c.tokens, c.num_heads, c.head_dim)
        shapes = {
            "latent": (c.latent_channels, c.chunk_frames, *c.latent_size),
            "condition": (c.in_channels - c.latent_channels, c.chunk_frames, *c.latent_size),
            "audio": (c.temporal * c.chunk_frames, c.audio_dim),
            "modulation": (6 * c.num_layers + 2, c.dim),
            "rope_cos": (c.chunk_frames, axis_pairs(c.head_dim)[0]),
            "rope_sin": (c.chunk_frames, axis_pairs(c.head_dim)[0]),
            "text_k": (c.num_heads, c.text_len, c.head_dim),
            "text_v": (c.num_heads, c.text_len, c.head_dim),
            "k": ring,
            "v": ring,
        }

        def tensor(name: str) -> Tensor:
            if name == "slot":
                return torch.zeros(1, dtype=torch.int64)
            kind = name.partition(".")[0]
            dtype = weight.dtype if kind in ("k", "v", "text_k", "text_v") else torch.float32
            return torch.zeros(shapes[kind], dtype=dtype, device=weight.device)

        return tuple(tensor(name) for name in self.input_names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = dict(zip(self.input_names, inputs, strict=True))
        layers = range(self.student.config.num_layers)
        text_kv = [(x[f"text_k.{i}"][None], x[f"text_v.{i}"][None]) for i in layers]
        written: list[Tensor] = []

        def write(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            rings = x[f"k.{layer}"], x[f"v.{layer}"]
            tables = x["rope_cos"], x["rope_sin"], self.spatial_cos, self.spatial_sin
            k_out, v_out = kv_ring_write(*rings, k, v, x["slot"], *tables)
            written.extend([k_out, v_out])
            return k_out, v_out

        cos, sin = join_tables(x["rope_cos"], self.spatial_cos), join_tables(x["rope_sin"], self.spatial_sin)
        attend = RingAttention(write, cos, sin, self.student)
        chunk = x["latent"], x["condition"], x["audio"]
        return self.student.denoise(*chunk, x["modulation"], text_kv, attend).float(), *written


def dynamic_shapes(module: RingPass, config: StudentConfig) -> tuple[dict[int, object], ...]:
    """The dynamic size: the ring's attended frames, whose values are `RingGeometry.phases`."""
    frames = torch.export.Dim("attended_frames", min=config.chunk_frames, max=config.window)
    return tuple({0: frames} if name.startswith(("k.", "v.")) else {} for name in module.input_names)
