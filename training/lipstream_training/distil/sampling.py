"""The teacher's sampler: many small steps along the flow, with or without guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from lipstream_models import ClipAttention
from lipstream_models.schedule import predict_x0, shift_time
from torch import Tensor

from .rollout import Batch
from .stages import Networks

Scale = Callable[[float], float]
"""Time -> guidance; 1 means no guidance."""


def schedule(steps: int, shift: float = 5.0) -> list[float]:
    """Times of `steps` steps from 1 to 0, close together near noise."""
    return [float(shift_time(torch.tensor(1 - i / steps), shift)) for i in range(steps + 1)]


def constant(scale: float) -> Scale:
    return lambda t: scale


def inside(low: float, high: float, scale: float) -> Scale:
    """Guidance inside a window of times, none outside."""
    return lambda t: scale if low <= t <= high else 1.0


@torch.no_grad()
def trajectory(
    networks: Networks, batch: Batch, noise: Tensor, times: list[float], scale: Scale
) -> Iterator[tuple[float, Tensor]]:
    """Euler steps of the teacher (`networks.model`) through `times`; yields each time and the x0 predicted there."""
    net = networks.model
    attend = ClipAttention(net.config, batch.target.shape[2], causal=False, device=batch.target.device)
    rows = len(batch.target)
    sure = networks.text_kv(net, rows)
    free = networks.text_kv(net, rows, negative=torch.ones(rows, dtype=torch.bool))
    x = noise
    for t, after in pairwise(times):
        time = torch.full((rows, batch.target.shape[2]), t, device=x.device)
        v = net(x, batch.condition, batch.audio, time, sure, attend).float()
        if (guidance := scale(t)) != 1:
            silent = net(x, batch.condition, torch.zeros_like(batch.audio), time, free, attend).float()
            v = v + (guidance - 1) * (v - silent)
        yield t, predict_x0(x, v, t)
        x = x + (after - t) * v


def sample(networks: Networks, batch: Batch, noise: Tensor, steps: int, scale: Scale) -> Tensor:
    """The teacher's sample after `steps` steps, [B, C, F, h, w]."""
    found = noise
    for _, found in trajectory(networks, batch, noise, schedule(steps), scale):  # noqa: B007
        pass
    return found
