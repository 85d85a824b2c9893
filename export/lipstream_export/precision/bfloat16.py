"""BF16: matrix products and convolutions in bfloat16, everything between them in float32.

The upstream model runs wholly in bfloat16 except for the statistics of its norms and RoPE. Here the modulation and the
residual stay float32, too: they are cheap (they contain no product), and rounding the residual to 8 bits after each of
30 or 40 layers causes most of the error of bfloat16 (docs/precision.md).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TypeVar

import torch
from lipstream_models.layers import Conv2d, Conv3d, Linear
from lipstream_models.parts import StudentParts
from torch import nn

_M = TypeVar("_M", bound=nn.Module)


def to_bfloat16(parts: StudentParts) -> StudentParts:
    """A copy of `parts` whose student and codec compute products in bfloat16.

    The constants, which are computed once, stay float32. So does the audio encoder: it takes the logarithm of spectra,
    and is cheap.
    """
    parts = parts.with_constants()
    student, taehv, wan = _rounded(parts.student), _rounded(parts.taehv), _rounded(parts.wan)
    return replace(parts, student=student, taehv=taehv, wan=wan)


def _rounded(module: _M | None) -> _M | None:
    if module is None or all(layer.weight.dtype == torch.bfloat16 for layer in _products(module)):
        return module  # as for published weights; a copy would double the memory
    module = copy.deepcopy(module)
    for layer in _products(module):
        layer.to(torch.bfloat16)
    return module


def _products(module: nn.Module) -> list[Linear | Conv2d | Conv3d]:
    return [layer for layer in module.modules() if isinstance(layer, Linear | Conv2d | Conv3d)]
