"""Rectified flow: ``x_t = (1 - t) x0 + t noise``, the network predicts the velocity ``noise - x0``.

The algebra runs in float64 and is rounded to the operands' type at the end, as the upstream sampler does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """`x0` with the noise of time `t` in [0, 1] (a number, or a tensor that broadcasts against `x0`)."""
    time = torch.as_tensor(t, dtype=torch.float64, device=x0.device)
    return ((1 - time) * x0.double() + time * noise.double()).to(x0.dtype)


def predict_x0(x_t: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """The clean sample ``x_t - t velocity`` that the network predicts from `x_t` at time `t`."""
    time = torch.as_tensor(t, dtype=torch.float64, device=x_t.device)
    return (x_t.double() - time * velocity.double()).to(x_t.dtype)


def shift_time(u: Tensor, shift: float = 5.0) -> Tensor:
    """Move times `u` in [0, 1] towards noise: ``t = s u / (1 + (s - 1) u)``."""
    return shift * u / (1 + (shift - 1) * u)
