"""A student of toy size with everything that a stage of distillation runs, and clips of noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from lipstream_models import CausalDiT, StudentConfig
from lipstream_training.distil.recipe import Recipe
from lipstream_training.distil.rollout import Batch
from lipstream_training.distil.stages import Networks
from torch import Tensor

CONFIG = StudentConfig(
    dim=36,
    ffn_dim=48,
    num_heads=2,
    num_layers=4,
    latent_size=(4, 4),
    latent_channels=2,
    text_dim=8,
    text_len=3,
    audio_dim=6,
    audio_hidden=8,
    freq_dim=16,
)
FRAMES = 12
RECIPE = Recipe(
    student="toy",
    iterations=6,
    batch=2,
    accumulate=1,
    rate=1e-3,
    critic_rate=1e-3,
    lora=0,
    precision="fp32",
    checkpointing=False,
    update_ratio=2,
    save_every=100,
    sample_every=0,
)


def toy(seed: int = 0, config: StudentConfig = CONFIG) -> CausalDiT:
    torch.manual_seed(seed)
    model = CausalDiT(config)
    for parameter in model.parameters():  # nothing may be zero, or gradients and inputs would not count
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.3, 0.1)
    return model


class Clips:
    """Clips of noise, all different."""

    def __init__(self, count: int = 7, frames: int = FRAMES, config: StudentConfig = CONFIG) -> None:
        generator = torch.Generator().manual_seed(3)
        shape = (count, config.latent_channels, frames, *config.latent_size)
        self.target = torch.randn(shape, generator=generator)
        rest = 3 * config.latent_channels + 1
        self.condition = torch.randn(count, rest, *shape[2:], generator=generator)
        self.audio = torch.randn(count, 4 * frames, config.audio_dim, generator=generator)

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, clips: tuple[int, ...]) -> Batch:
        rows = torch.tensor(clips)
        return Batch(self.target[rows], self.condition[rows], self.audio[rows], clips)


def loudest(latents: Tensor, clips: tuple[int, ...]) -> Tensor:
    """A reward that increases with the values."""
    return latents.abs().flatten(1).mean(1)


def networks(recipe: Recipe = RECIPE) -> Networks:
    generator = torch.Generator().manual_seed(4)
    text, negative = torch.randn(2, CONFIG.text_len, CONFIG.text_dim, generator=generator)
    found = Networks(toy(0), text, negative)
    if recipe.stage == "self_forcing":
        return replace(found, teacher=toy(1), critic=toy(2), judge=loudest)
    return found
