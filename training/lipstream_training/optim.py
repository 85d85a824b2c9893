"""Optimisation shared by all training stages."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class Cosine(torch.optim.lr_scheduler.LambdaLR):
    """Linear warm-up over the first 3 % of `steps`, then a cosine to 2 % of the peak."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        def factor(step: int) -> float:
            warm = max(1.0, 0.03 * steps)
            return min((step + 1) / warm, 0.51 + 0.49 * math.cos(math.pi * min(step / steps, 1.0)))

        super().__init__(optimizer, factor)


class Average:
    """Exponential moving average of a module's parameters, in `module`. The decay grows to `decay` with the steps."""

    def __init__(self, module: nn.Module, decay: float = 0.995) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self._steps += 1
        decay = min(self._decay, self._steps / (self._steps + 10))
        for mean, value in zip(self.module.parameters(), module.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
