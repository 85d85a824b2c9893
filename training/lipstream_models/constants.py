"""Tensors that are the same for all streams of a student, computed once and stored in its bundle."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from .dit import CausalDiT

_M = TypeVar("_M", bound=nn.Module)

FOLDED = re.compile(r"time_embedding|time_projection|text_embedding|modulation|blocks\.\d+\.cross_attn\.(k|v|norm_k)\.")
"""Names of the student's weights that act only through `stream_constants`, and so are in no graph."""


def stream_constants(student: CausalDiT, text: Tensor) -> dict[str, Tensor]:
    """`modulation.i` [6 L + 2, dim] of each time; `text_k.l`, `text_v.l` [H, text_len, D] of each layer.

    Computed in float32, one layer at a time, whatever the weights' type.

    Args:
        text: the prompt embedding [text_len, text_dim].
    """
    with torch.no_grad():
        t_emb = _in_float32(student.time_embedding)(
            student.time_features(torch.tensor(student.config.t_list, dtype=torch.float64)).float()
        )
        e = torch.unflatten(_in_float32(student.time_projection)(t_emb), -1, (6, -1))
        constants = {f"modulation.{i}": x for i, x in enumerate(student.modulation(t_emb, e))}
        context = _in_float32(student.text_embedding)(text[None].float())
        for i, block in enumerate(student.layers):
            k, v = (x.transpose(1, 2) for x in _in_float32(block.cross_attn).key_value(context))
            constants |= {f"text_k.{i}": k[0], f"text_v.{i}": v[0]}
    return constants


def restore_times(student: CausalDiT, constants: Mapping[str, Tensor]) -> None:
    """Make `student.forward` compute with the `modulation.i` of `constants` at the times of its `t_list`.

    For a student from a bundle, which lacks the weights behind them. The rows of any two layers differ by what does not
    depend on time, so that those of the first layer stand for all. Other times get the rows of the nearest features.
    """
    config = student.config
    rows = torch.stack([constants[f"modulation.{i}"] for i in range(len(config.t_list))]).float()
    rows[:, 1::3] -= 1  # the factors, 1 + scale; rows come in threes, but for the head's two
    blocks = torch.unflatten(rows[:, :-2], 1, (config.num_layers, 6))
    head = rows[:, -2:]
    with torch.no_grad():
        for i, block in enumerate(student.layers):
            block.modulation.copy_((blocks[:, i] - blocks[:, 0]).mean(0))
        student.head.modulation.copy_((head - head[:, :1]).mean(0))
    features = student.time_features(torch.tensor(config.t_list, dtype=torch.float64)).float()
    student.time_embedding = nn.Sequential(_Nearest(features, head[:, 0]))
    student.time_projection = nn.Sequential(_Nearest(head[:, 0], blocks[:, 0].flatten(1)))


class _Nearest(nn.Module):
    """Returns the row of `values` [n, b] whose key in `keys` [n, a] is nearest to the input [..., a]."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", keys.clone(), persistent=False)
        self.register_buffer("values", values.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.values[(x[..., None, :] - self.keys).square().sum(-1).argmin(-1)]


def _in_float32(module: _M) -> _M:
    """`module` itself if it is in float32, else a copy that is."""
    exact = all(x.dtype == torch.float32 for x in module.parameters())
    return module if exact else copy.deepcopy(module).float()
