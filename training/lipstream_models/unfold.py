"""A bundle's constants back into weights, so that its student can be trained on.

Export computes everything that depends on the times and on the prompt alone (`stream_constants`) and drops the weights
behind it. They are not unique: any others with the same results serve. Hidden layers stay as they are initialised; the
last ones, which are linear in their weights, are solved for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from .dit import CausalDiT
from .parts import StudentParts


def unfolded(parts: StudentParts) -> StudentParts:
    """`parts` with all weights of the student and a prompt embedding in place of a bundle's constants.

    The student computes as before at the times of its `t_list` and with that prompt. At other times it computes
    something in between, and with other prompts anything.
    """
    if parts.shared is None or parts.student is None:
        return parts
    config = parts.config
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(config.text_len, config.text_dim, generator=generator)
    student = copy.deepcopy(parts.student).float()
    with torch.no_grad():
        _unfold_times(student, parts.shared)
        _unfold_prompt(student, parts.shared, text)
    return replace(parts, student=student, text=text, shared=None)


def _unfold_times(student: CausalDiT, constants: Mapping[str, Tensor]) -> None:
    """The rows of two layers differ by what does not depend on time, so those of the first layer stand for all."""
    config = student.config
    rows = torch.stack([constants[f"modulation.{i}"] for i in range(len(config.t_list))]).float()
    rows[:, 1::3] -= 1  # the factors, 1 + scale; rows come in threes, but for the head's two
    blocks, head = torch.unflatten(rows[:, :-2], 1, (config.num_layers, 6)), rows[:, -2:]
    for i, block in enumerate(student.layers):
        block.modulation.copy_((blocks[:, i] - blocks[:, 0]).mean(0))
    student.head.modulation.copy_((head - head[:, :1]).mean(0))
    features = student.time_features(torch.tensor(config.t_list, dtype=torch.float64)).float()
    _solve(student.time_embedding, features, head[:, 0])
    _solve(student.time_projection, head[:, 0], blocks[:, 0].flatten(1))


def _unfold_prompt(student: CausalDiT, constants: Mapping[str, Tensor], text: Tensor) -> None:
    context = student.text_embedding(text)
    for i, block in enumerate(student.layers):
        k, v = (constants[f"text_{kind}.{i}"].float().transpose(0, 1).flatten(1) for kind in "kv")
        attention = block.cross_attn
        # K is the row over its root mean square, times a weight w: K / w has a mean square of 1 in every row.
        weight = _common_weight(k)
        attention.norm_k.weight.copy_(weight)
        _solve(nn.Sequential(attention.k), context, k / weight)
        _solve(nn.Sequential(attention.v), context, v)


def _common_weight(k: Tensor) -> Tensor:
    """A weight w > 0 [dim] such that every row of k / w, k [n, dim], has a mean square of 1."""
    squares = k.double().square()
    scale = squares.mean()
    squares = squares / scale
    solve = _right_inverse(squares)
    inverse = torch.ones(k.shape[1], dtype=torch.float64)  # of the square of the weight
    for _ in range(100):  # project on the solutions of the equations, then on the positive vectors
        inverse = (inverse + solve @ (k.shape[1] - squares @ inverse)).clamp_min(1e-2)
    return (inverse / scale).rsqrt().float()


def _right_inverse(a: Tensor) -> Tensor:
    """r, where r @ b is the smallest solution x of a x = b; a has fewer rows than columns."""
    return cast(Tensor, torch.linalg.solve(a @ a.T, a)).T


def _solve(layers: nn.Sequential, x: Tensor, wanted: Tensor) -> None:
    """Set the last, linear layer so that rows `x` [n, a] become the rows `wanted` [n, b], by the smallest change."""
    *before, last = layers
    assert isinstance(last, nn.Linear)
    for layer in before:
        x = layer(x)
    error = (wanted - last(x)).double()
    inputs = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    change = _right_inverse(inputs) @ error
    last.weight.add_(change[:-1].T)
    last.bias.add_(change[-1])
