"""Clips as the model in training generates them, to be looked at."""

from __future__ import annotations

import torch
from lipstream_models import CausalDiT
from torch import Tensor

from .rollout import Batch, roll_out
from .sampling import constant, sample
from .stages import Networks

_STEPS = 50
"""Of a teacher."""


@torch.no_grad()
def generate(networks: Networks, stage: str, model: CausalDiT, batch: Batch, *, seed: int) -> Tensor:
    """Latents [B, C, F, h, w]: a teacher's clips whole, in 50 steps and not guided; a student's chunk by chunk.

    The noise follows from `seed` and the shape of the batch alone.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    if stage == "teacher":
        return sample(networks, batch, draw(batch.target), _STEPS, constant(1.0))
    return roll_out(model, batch, networks.text_kv(model, len(batch.target)), draw)
