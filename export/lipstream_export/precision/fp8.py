"""FP8: linear layers that multiply E4M3 numbers, as quantise-dequantise pairs that TensorRT turns into FP8 products.

A value x is stored as ``round(x / scale)`` in E4M3, whose range is -448 to 448, with 3 bits of mantissa. Weights have
one scale per output channel, inputs one per layer; both are bfloat16 numbers, so that every runtime divides by the same
scale. NVIDIA's Model Optimizer is not used: it exports with TorchScript, which cannot represent the ring's node
(docs/precision.md).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lipstream_models import CausalDiT
from lipstream_models.layers import Linear
from torch import Tensor, nn

LARGEST = 448.0
"""Largest number of E4M3; larger values are clipped to it, since the type has no infinity."""
E4M3 = torch.float8_e4m3fn


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """`x` in units of `scale` (broadcast), rounded to E4M3, in that type."""
    return (x.float() / scale.float()).clamp(-LARGEST, LARGEST).to(E4M3)


def scale_of(amax: Tensor) -> Tensor:
    """The bfloat16 scale with which `amax` is the largest E4M3 number; never zero."""
    return (amax.float() / LARGEST).clamp_min(1e-12).to(torch.bfloat16)


class FP8Linear(nn.Module):
    """`Linear` on E4M3 numbers: x [..., K] -> [..., N], bfloat16.

    In eager mode it computes the same as an FP8 product: E4M3 numbers, sums in float32, scaled and rounded once. The
    export has QuantizeLinear and DequantizeLinear on both inputs of a MatMul. The output has the bias's type.

    Args:
        linear: the layer to replace. amax: the largest input to represent.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    weight_zero: Tensor
    input_zero: Tensor

    def __init__(self, linear: nn.Linear, amax: float) -> None:
        super().__init__()
        weight = linear.weight.detach().float().T.contiguous()  # [K, N]: for MatMul without a Transpose
        scale = scale_of(weight.abs().amax(0))
        self.register_buffer("weight", to_e4m3(weight, scale))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero", torch.zeros(weight.shape[1], dtype=E4M3))
        self.register_buffer("input_scale", scale_of(torch.tensor(amax)))
        self.register_buffer("input_zero", torch.zeros((), dtype=E4M3))
        self.bias = nn.Parameter(linear.bias.detach().to(torch.bfloat16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.bias.dtype
        if not torch.onnx.is_in_onnx_export():
            product = to_e4m3(x.to(dtype), self.input_scale).float() @ self.weight.float()
            return (product * (self.input_scale.float() * self.weight_scale.float())).to(dtype) + self.bias
        x = _pair(x.to(dtype), self.input_scale, self.input_zero)
        scaled = self.weight, self.weight_scale, self.weight_zero
        return x @ _node("DequantizeLinear", scaled, self.weight, dtype, axis=1) + self.bias


class FP8Operands(nn.Module):
    """Q, K and V of an attention rounded to E4M3, with one scale each: TensorRT computes such an attention in FP8.

    Args:
        amax: the largest Q, K and V to represent.
    """

    scales: Tensor
    zero: Tensor

    def __init__(self, amax: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("scales", scale_of(torch.tensor(amax)))
        self.register_buffer("zero", torch.zeros((), dtype=E4M3))

    def forward(self, *qkv: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._rounded(x, scale) for x, scale in zip(qkv, self.scales.unbind(), strict=True))

    def _rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return _pair(x, scale, self.zero)
        return (to_e4m3(x, scale).float() * scale.float()).to(x.dtype)


def _pair(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return _node("DequantizeLinear", (_node("QuantizeLinear", (x, scale, zero), x, E4M3), scale, zero), x, x.dtype)


def _node(name: str, inputs: tuple[Tensor, ...], like: Tensor, dtype: torch.dtype, **attributes: Any) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=like.shape, version=23)


def linear_layers(student: CausalDiT) -> dict[str, Linear]:
    """The layers that may be FP8, by name: those inside the blocks that a pass computes.

    Layers outside (patches, audio, head) are a hundredth of the work and act on the latents directly; K and V of the
    prompt are computed once, in the constants.
    """
    constant = ("cross_attn.k", "cross_attn.v")
    return {
        name: layer
        for name, layer in student.named_modules()
        if isinstance(layer, Linear) and name.startswith("blocks.") and not name.endswith(constant)
    }


def quantise(
    student: CausalDiT, amax: Mapping[str, float], operands: Sequence[Sequence[float]] | None = None
) -> CausalDiT:
    """A copy of `student` in which the layers named in `amax` are FP8.

    Args:
        amax: the largest input of each layer, by name.
        operands: the largest Q, K and V of every layer, for a self-attention in FP8, too.
    """
    student = copy.deepcopy(student)
    for block, largest in zip(student.layers, operands or (), strict=False):
        block.self_attn.operands = FP8Operands(largest)
    for name, reach in amax.items():
        parent, _, child = name.rpartition(".")
        layer = student.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(student.get_submodule(parent), child, FP8Linear(layer, reach))
    return student
