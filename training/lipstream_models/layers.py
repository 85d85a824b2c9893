"""Linear layers, convolutions and norms that convert their input to the type of their weights.

So a model can compute matrix products in bfloat16 and everything between them (norms, modulation, the residual) in
float32: only the weights of these layers are converted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class Conv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class LayerNorm(nn.LayerNorm):
    """A LayerNorm with weights."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


@torch.no_grad()
def round_to_bfloat16(module: nn.Module) -> None:
    """Round all weights, in place, to values that bfloat16 holds exactly; a bundle stores them in half the size."""
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16())
