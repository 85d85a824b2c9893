"""KVRingWrite: the only operation of the ring inside the graphs.

It is a node `lipstream::KVRingWrite` with a model-local function as its body.
ONNX Runtime runs the body; TensorRT runs a plugin of that name where one is registered, else the body.
"""

# The body of KVRingWrite is ONNX in Python's syntax; its values have no types that mypy could follow.
# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

import onnxscript
import torch
from lipstream_models.rope import rotate
from onnxscript import opset23 as op
from onnxscript.values import Opset
from torch import Tensor

DOMAIN = Opset("lipstream", 1)


def kv_ring_write(
    k_ring: Tensor,
    v_ring: Tensor,
    k: Tensor,
    v: Tensor,
    slot: Tensor,
    cos_t: Tensor,
    sin_t: Tensor,
    cos_s: Tensor,
    sin_s: Tensor,
) -> tuple[Tensor, Tensor]:
    """The rings [F, T, H, D] with the chunk's rotated K and plain V [c, T, H, D] at frame `slot`; a node when traced.

    `slot` is int64 [1]; the tables are float32, temporal [c, time pairs] and spatial [T, other pairs].
    """
    if not torch.onnx.is_in_onnx_export():
        cos, sin = (join_tables(*pair)[:, :, None] for pair in ((cos_t, cos_s), (sin_t, sin_s)))
        frames = slice(int(slot), int(slot) + len(k))
        k_out, v_out = k_ring.clone(), v_ring.clone()
        k_out[frames], v_out[frames] = rotate(k, cos, sin), v
        return k_out, v_out
    k_out, v_out = torch.onnx.ops.symbolic_multi_out(
        "lipstream::KVRingWrite",
        (k_ring, v_ring, k, v, slot, cos_t, sin_t, cos_s, sin_s),
        dtypes=(k_ring.dtype, v_ring.dtype),
        shapes=(k_ring.shape, v_ring.shape),
        version=DOMAIN.version,
    )
    return k_out, v_out


def rotate_tokens(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [B, N, H, D] rotated by the float32 tables [B, N, D/2]; the operator RotaryEmbedding when traced."""
    if not torch.onnx.is_in_onnx_export():
        return rotate(x, cos[:, :, None], sin[:, :, None])
    turned = torch.onnx.ops.rotary_embedding(x.transpose(1, 2).to(cos.dtype), cos, sin, interleaved=True)
    return turned.transpose(1, 2).to(x.dtype)


def join_tables(temporal: Tensor, spatial: Tensor) -> Tensor:
    """[c, time pairs] and [T, other pairs] -> [c, T, D/2]."""
    shape = (temporal.shape[0], spatial.shape[0], -1)
    return torch.cat([temporal[:, None].expand(shape), spatial[None].expand(shape)], dim=-1)


@onnxscript.script(DOMAIN)
def KVRingWrite(k_ring, v_ring, k, v, slot, cos_t, sin_t, cos_s, sin_s):  # type: ignore[no-untyped-def]
    """The body, in standard ONNX."""
    one = op.Constant(value_ints=[1])
    chunk = op.Shape(k, start=0, end=1)
    tokens = op.Shape(k, start=1, end=2)
    tiles_t = op.Concat(one, tokens, one, axis=0)
    tiles_s = op.Concat(chunk, one, one, axis=0)
    axes_t = op.Constant(value_ints=[1])
    axes_s = op.Constant(value_ints=[0])
    cos = op.Concat(
        op.Tile(op.Unsqueeze(cos_t, axes_t), tiles_t), op.Tile(op.Unsqueeze(cos_s, axes_s), tiles_s), axis=-1
    )
    sin = op.Concat(
        op.Tile(op.Unsqueeze(sin_t, axes_t), tiles_t), op.Tile(op.Unsqueeze(sin_s, axes_s), tiles_s), axis=-1
    )
    heads_first = op.CastLike(op.Transpose(k, perm=[0, 2, 1, 3]), cos_t)
    turned = op.RotaryEmbedding(heads_first, cos, sin, interleaved=1)
    rotated = op.CastLike(op.Transpose(turned, perm=[0, 2, 1, 3]), k_ring)
    zero = op.Constant(value_int=0)
    count = op.Squeeze(chunk, op.Constant(value_ints=[0]))
    frames = op.Add(slot, op.Range(zero, count, op.Constant(value_int=1)))
    index = op.Unsqueeze(frames, op.Constant(value_ints=[-1]))
    k_out = op.ScatterND(k_ring, index, rotated)
    v_out = op.ScatterND(v_ring, index, op.CastLike(v, v_ring))
    return k_out, v_out
