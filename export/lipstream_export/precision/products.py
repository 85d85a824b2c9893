"""Products of bfloat16 computed in float32, for CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from lipstream_models.layers import Conv2d, Conv3d, Linear
from torch import Tensor, nn


@contextmanager
def products_in_float32(module: nn.Module) -> Iterator[None]:
    """Compute products of bfloat16 in float32, and round the result.

    It is the same except for the order of the sum, which is float32 in both cases. A CPU without instructions for
    bfloat16 is 7 (matrices) to 28 times (convolutions) slower with it.
    """
    layers = [
        x for x in module.modules() if isinstance(x, Linear | Conv2d | Conv3d) and x.weight.dtype == torch.bfloat16
    ]
    for layer in layers:
        layer.forward = partial(_wide_product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _wide_product(layer: Linear | Conv2d | Conv3d, x: Tensor) -> Tensor:
    weights = [p for p in (layer.weight, layer.bias) if p is not None]
    stored = [p.data for p in weights]
    try:
        for p in weights:
            p.data = p.data.float()
        return type(layer).forward(layer, x.bfloat16().float()).bfloat16()  # type: ignore[arg-type]
    finally:
        for p, data in zip(weights, stored, strict=True):
            p.data = data
