"""Tensors that are the same for all streams of a student, computed once and stored in its bundle."""

from __future__ import annotations

import copy
import re
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


def _in_float32(module: _M) -> _M:
    """`module` itself if it is in float32, else a copy that is."""
    exact = all(x.dtype == torch.float32 for x in module.parameters())
    return module if exact else copy.deepcopy(module).float()
