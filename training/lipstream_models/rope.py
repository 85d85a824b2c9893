"""Rotary position embedding over three axes: time, height, width.

A head's ``D`` numbers are ``D/2`` adjacent pairs; the first ones rotate with the latent frame's index, the next with
the row, the last with the column. Width and height get ``D // 6`` pairs each, time the rest (22, 21, 21 for D = 128).
Frequency j of an axis with n pairs is ``10000 ** (-j / n)``. All angles are computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10000.0


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Pairs of the (time, height, width) axes for a head of `head_dim` numbers."""
    spatial = head_dim // 6
    return head_dim // 2 - 2 * spatial, spatial, spatial


def _angles(positions: Tensor, pairs: int) -> Tensor:
    frequencies = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return positions.to(torch.float64)[:, None] * frequencies


def temporal_angles(frames: Tensor, head_dim: int) -> Tensor:
    """Angles [F, time pairs] (float64, radians) of latent frames at the integer indices `frames` [F]."""
    return _angles(frames, axis_pairs(head_dim)[0])


def spatial_angles(grid: tuple[int, int], head_dim: int) -> Tensor:
    """Angles [rows * columns, height pairs + width pairs] (float64, radians) of the tokens of a frame, row by row."""
    _, pairs_h, pairs_w = axis_pairs(head_dim)
    rows, columns = grid
    h = _angles(torch.arange(rows), pairs_h)[:, None].expand(rows, columns, pairs_h)
    w = _angles(torch.arange(columns), pairs_w)[None].expand(rows, columns, pairs_w)
    return torch.cat([h, w], dim=-1).reshape(rows * columns, pairs_h + pairs_w)


def token_angles(temporal: Tensor, spatial: Tensor) -> Tensor:
    """Angles [F, T, D/2] of every token from those of the frames [F, time pairs] and of a frame's tokens [T, rest]."""
    frames, tokens = temporal.shape[0], spatial.shape[0]
    return torch.cat(
        [temporal[:, None].expand(frames, tokens, -1), spatial[None].expand(frames, tokens, -1)],
        dim=-1,
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of `x` [..., D] by angles given as `cos`, `sin` [..., D/2] (broadcast), in the tables' type."""
    pairs = torch.unflatten(x, -1, (-1, 2)).to(cos.dtype)
    a, b = pairs[..., 0], pairs[..., 1]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
