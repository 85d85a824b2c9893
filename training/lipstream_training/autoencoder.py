"""Train the narrow TAEHV that the tiny student lives in: crops to 16 unit-scale channels, and back to crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .models import TAEHV, TAEHVConfig
from .models.taehv import TEMPORAL
from .optim import Cosine

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class AutoencoderRecipe:
    """`steps` batches of `batch` snippets of `frames` frames; the mouth is hidden in the share `masked` of them."""

    steps: int = 1300
    batch: int = 4
    frames: int = 12
    learning_rate: float = 2e-3
    masked: float = 0.25
    noise: float = 0.1


def train_autoencoder(
    config: TAEHVConfig,
    clips: list[Frames],
    mask: Tensor,
    recipe: AutoencoderRecipe,
    *,
    seed: int,
    progress: Callable[[float], None],
) -> TAEHV:
    """A TAEHV trained on snippets of `clips` (uint8 [N, V, H, W, 3] each), with latents of zero mean and unit variance.

    Args:
        mask: pixel mask [H, W], 1 = keep.
        progress: called with the loss after each step.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = TAEHV(config)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    scale = nn.BatchNorm2d(config.latent_channels, affine=False, momentum=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=1e-4)
    schedule = Cosine(optimizer, recipe.steps)
    size = clips[0].shape[2:4]
    for _ in range(recipe.steps):
        video = torch.stack([_snippet(clips, recipe.frames, rng) for _ in range(recipe.batch)])
        hidden = torch.from_numpy(rng.random(recipe.batch) < recipe.masked)
        video = torch.where(hidden[:, None, None, None, None], (video - 0.5) * mask + 0.5, video)
        with torch.autocast("cpu", torch.bfloat16):
            latent, _ = model.encode(video, model.encoder_memory(recipe.batch, *size))
            latent = scale(latent.flatten(0, 1)).unflatten(0, latent.shape[:2])
            latent = latent + recipe.noise * torch.randn_like(latent)
            out, _ = model.decode(latent, model.decoder_memory(recipe.batch, *size), clamp=False)
        loss = picture_loss(out.float(), video)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(loss.item())
    fold_scale(model, scale)
    return model.eval()


def picture_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of the pictures and of their horizontal and vertical differences, [B, T, 3, H, W]."""
    error = found - wanted
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = F.avg_pool2d(error.flatten(0, 1), 4).abs().mean()
    return error.abs().mean() + edges + coarse


@torch.no_grad()
def fold_scale(model: TAEHV, scale: nn.BatchNorm2d) -> None:
    """Put the latents' normalisation into the encoder's last convolution, so that unit latents come out of it."""
    last = model.encoder[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    assert scale.running_mean is not None
    assert scale.running_var is not None
    factor = torch.rsqrt(scale.running_var + scale.eps)
    last.weight.mul_(factor[:, None, None, None])
    last.bias.sub_(scale.running_mean).mul_(factor)


@torch.no_grad()
def encode_clip(model: TAEHV, frames: Frames, mask: Tensor | None = None) -> Tensor:
    """Crops uint8 [1 + 4 n, H, W, 3] -> latents [C, 1 + n, h, w]; the first frame stands for four, as in a stream."""
    video = torch.from_numpy(np.concatenate([np.repeat(frames[:1], TEMPORAL - 1, 0), frames])).permute(0, 3, 1, 2) / 255
    if mask is not None:
        video = (video - 0.5) * mask + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        latent, _ = model.encode(video[None], model.encoder_memory(1, *frames.shape[1:3]))
    return latent[0].transpose(0, 1).float()


def _snippet(clips: list[Frames], frames: int, rng: np.random.Generator) -> Tensor:
    source = clips[rng.integers(len(clips))]
    clip = source[rng.integers(len(source))]
    start = rng.integers(len(clip) - frames + 1)
    return torch.from_numpy(clip[start : start + frames]).permute(0, 3, 1, 2) / 255
