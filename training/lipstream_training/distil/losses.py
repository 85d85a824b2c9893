"""The losses of the three stages, in x0 space where upstream computes them there.

Symbols: g the student's result, f the fake score's x0 of it, T the teacher's x0, s the guidance, t the scores' time.
"""

from __future__ import annotations

import math

import torch
from lipstream_models.schedule import shift_time
from torch import Tensor

from .recipe import Recipe


def score_times(u: Tensor, shift: float) -> Tensor:
    """Times of the scores from `u` uniform in [0, 1): shifted towards noise, kept in 0.001 to 0.999."""
    return shift_time(0.001 + 0.998 * u, shift).clamp(0.001, 0.999)


def per_sample(x: Tensor) -> Tensor:
    """Mean of everything but the batch, [B]."""
    return x.flatten(1).mean(1)


def guided(conditional: Tensor, unconditional: Tensor, t: Tensor, recipe: Recipe) -> Tensor:
    """The teacher's x0 with guidance, ``T_c + (s(t) - 1) (T_c - T_u)``; s is 1 outside the gate.

    Args:
        conditional, unconditional: [B, C, F, h, w]. t: [B].
    """
    low, high = recipe.gate
    inside = (t >= low) & (t <= high)
    scale = torch.where(inside, recipe.guidance - 1, 0.0).view(-1, 1, 1, 1, 1)
    return conditional + scale * (conditional - unconditional)


def distribution_matching(g: Tensor, f: Tensor, teacher: Tensor) -> Tensor:
    """Loss [B] whose gradient in g is ``w (f - T)`` over the number of g's elements, with w = 1 / mean |g - T|.

    Everything but g is detached (Yin et al., DMD).
    """
    with torch.no_grad():
        weight = 1 / (per_sample((g.float() - teacher.float()).abs()) + 1e-6)
        gradient = weight.view(-1, 1, 1, 1, 1) * (f.float() - teacher.float())
        goal = g.float() - gradient
    return 0.5 * per_sample((g.float() - goal).square())


class RewardMean:
    """The moving average of rewards that the reward `centred` subtracts.

    Attributes:
        value: float64 [], NaN before the first reward.
    """

    decay = 0.9

    def __init__(self, recipe: Recipe) -> None:
        self._of_batches = recipe.reward_centre == "batches"
        self.value = torch.tensor(torch.nan, dtype=torch.float64)

    def centre(self, rewards: Tensor) -> Tensor:
        """What to subtract from the rewards [B] of a batch; themselves if there is nothing before the first update."""
        if self._of_batches:
            self._add(float(rewards.double().mean()))
        return rewards if self.value.isnan() else self.value.to(rewards)

    def end_update(self, mean: float) -> None:
        """Call this after an update with the mean of its rewards."""
        if not self._of_batches:
            self._add(mean)

    def _add(self, mean: float) -> None:
        if not math.isfinite(mean):
            return
        self.value.fill_(mean if self.value.isnan() else self.decay * self.value + (1 - self.decay) * mean)


def rewarded(losses: Tensor, rewards: Tensor | None, recipe: Recipe, centre: Tensor | None = None) -> Tensor:
    """The loss of a batch from the losses L of its clips [B], weighted by SyncNet's confidence r in them [B], detached.

    exp (upstream): mean of exp(beta r) L. The best clip dominates, and the scale is e^10 to e^16, which only gradient
        clipping and Adam compensate.
    centred: the same with r minus `centre`, which broadcasts to [B] (`RewardMean`), so that the scale is near 1.
    self_normalised: sum of exp(beta r) L over the sum of the weights.
    batch_mean (upstream's first version): mean weight times mean loss, so that all clips weigh the same.
    """
    if recipe.reward == "none" or rewards is None:
        return losses.mean()
    r = rewards.detach().to(losses)
    if recipe.reward == "centred" and centre is not None:
        r = r - centre.to(r)
    if recipe.reward == "self_normalised":
        r = r - r.mean()  # cancels, but keeps the exponents small
    exponent = recipe.reward_beta * r
    if recipe.reward_clamp:
        exponent = exponent.clamp(max=recipe.reward_clamp)
    weights = exponent.exp()
    if recipe.reward == "self_normalised":
        return (weights * losses).sum() / weights.sum()
    if recipe.reward == "batch_mean":
        return weights.mean() * losses.mean()
    return (weights * losses).mean()
