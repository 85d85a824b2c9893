"""Train the narrow TAEHV that the tiny student lives in: crops to 16 unit-scale channels, and back to crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .models import TAEHV
from .models.taehv import SPATIAL, TEMPORAL, MemBlock
from .optim import Cosine

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class AutoencoderRecipe:
    """`steps` batches of `batch` snippets, each `frames` frames of a square of `size` pixels anywhere in a clip.

    Many short snippets beat few long ones: what a step needs is different people. A share `masked` of them has the
    mouth hidden, as the student's input has; `noise` is added to the latents, since those of a student are not exact.
    """

    steps: int = 900
    batch: int = 16
    frames: int = 8
    size: int = 64
    learning_rate: float = 2e-3
    masked: float = 0.25
    noise: float = 0.1


class LatentScale(nn.Module):
    """Brings latents [n, C, h, w] to zero mean and unit variance by running statistics.

    Not by those of the batch, as batch normalisation would: a batch has few people, and their mean colour is not to be
    taken out.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, momentum: float = 0.05) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self._momentum, self._steps = momentum, 0

    @torch.no_grad()
    def update(self, latent: Tensor) -> None:
        self._steps += 1
        weight = max(self._momentum, 1 / self._steps)
        self.mean.lerp_(latent.mean((0, 2, 3)), weight)
        self.variance.lerp_(latent.var((0, 2, 3)), weight)

    def forward(self, latent: Tensor) -> Tensor:
        return (latent - self.mean[:, None, None]) * torch.rsqrt(self.variance + 1e-5)[:, None, None]

    @torch.no_grad()
    def fold_into(self, convolution: nn.Conv2d) -> None:
        """Put the scale into the convolution before it, so that the encoder gives unit latents by itself."""
        assert convolution.bias is not None
        factor = torch.rsqrt(self.variance + 1e-5)
        convolution.weight.mul_(factor[:, None, None, None])
        convolution.bias.sub_(self.mean).mul_(factor)


def train_autoencoder(
    model: TAEHV,
    sources: list[Frames],
    mask: Tensor,
    recipe: AutoencoderRecipe,
    *,
    seed: int,
    progress: Callable[[float], None],
) -> TAEHV:
    """Train `model` on snippets of `sources` (uint8 [N, V, H, W, 3] each); its latents get zero mean and unit variance.

    Args:
        mask: pixel mask [H, W], 1 = keep.
        progress: called with the loss after each step.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    scale = LatentScale(model.config.latent_channels)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=1e-4)
    schedule = Cosine(optimizer, recipe.steps)
    size = recipe.size, recipe.size
    for _ in range(recipe.steps):
        video = torch.stack([_snippet(sources, mask, recipe, rng) for _ in range(recipe.batch)])
        with torch.autocast("cpu", torch.bfloat16):
            latent, _ = model.encode(video, model.encoder_memory(recipe.batch, *size))
            flat = latent.flatten(0, 1).float()
            scale.update(flat)
            latent = scale(flat).unflatten(0, latent.shape[:2])
            latent = latent + recipe.noise * torch.randn_like(latent)
            out, _ = model.decode(latent, model.decoder_memory(recipe.batch, *size), clamp=False)
        loss = picture_loss(out.float(), video)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(loss.item())
    last = model.encoder[-1]
    assert isinstance(last, nn.Conv2d)
    scale.fold_into(last)
    return model.eval()


@dataclass(frozen=True)
class DecoderRecipe:
    """`steps` batches of `batch` pieces of `frames` latent frames and `size` latent pixels square, most on the mouth.

    The encoder rests, so that the students' latents stay what they are; the decoder learns to show what is in them
    where it will be seen, which is nowhere but inside the mask.
    """

    steps: int = 1300
    batch: int = 12
    frames: int = 3
    size: int = 6
    learning_rate: float = 1.5e-3
    elsewhere: float = 0.2
    noise: float = 0.1


def train_decoder(
    model: TAEHV,
    clips: Frames,
    latents: Tensor,
    latent_mask: Tensor,
    recipe: DecoderRecipe,
    *,
    seed: int,
    progress: Callable[[float], None],
) -> TAEHV:
    """Train the decoder of `model` on `latents` [N, C, F, h, w] of `clips` uint8 [N, 4 F - 3, 8 h, 8 w, 3].

    `latent_mask` [h, w] is 1 where the picture is kept; `progress` is called with the loss after each step.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.decoder.parameters(), recipe.learning_rate, weight_decay=1e-4)
    schedule = Cosine(optimizer, recipe.steps)
    n, pixels = recipe.size, SPATIAL * recipe.size
    wanted = np.argwhere(latent_mask.numpy() < 0.5)
    height, width = latent_mask.shape
    for _ in range(recipe.steps):
        pieces, pictures = [], []
        for _ in range(recipe.batch):
            clip, first = rng.integers(len(latents)), 1 + rng.integers(latents.shape[2] - recipe.frames)
            middle = (
                wanted[rng.integers(len(wanted))] if rng.random() > recipe.elsewhere else rng.integers(height, size=2)
            )
            top, left = (
                int(np.clip(at - n // 2, 0, side - n)) for at, side in zip(middle, (height, width), strict=True)
            )
            pieces.append(latents[clip, :, first : first + recipe.frames, top : top + n, left : left + n])
            frames = clips[clip, TEMPORAL * first - 3 : TEMPORAL * (first + recipe.frames) - 3]
            y, x = SPATIAL * top, SPATIAL * left
            pictures.append(torch.from_numpy(np.array(frames[:, y : y + pixels, x : x + pixels])))
        latent = torch.stack(pieces).float().transpose(1, 2)
        video = torch.stack(pictures).permute(0, 1, 4, 2, 3) / 255
        with torch.autocast("cpu", torch.bfloat16):
            noisy = latent + recipe.noise * torch.randn_like(latent)
            out, _ = model.decode(noisy, model.decoder_memory(recipe.batch, pixels, pixels), clamp=False)
        loss = picture_loss(out.float(), video)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(loss.item())
    return model.eval()


@torch.no_grad()
def initialise(model: TAEHV) -> None:
    """Weights that keep the signal's size through twenty layers; residual branches start small, the output mid-grey."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            rectified = layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if rectified else "linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in model.modules():
        if isinstance(layer, MemBlock):
            branch_end = layer.conv[-1]
            assert isinstance(branch_end, nn.Conv2d)
            branch_end.weight.mul_(0.2)
    last = model.decoder[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.weight.mul_(0.3)
    last.bias.fill_(0.5)


def picture_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of the pictures and of their horizontal and vertical differences, [B, T, 3, H, W]."""
    error = found - wanted
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = F.avg_pool2d(error.flatten(0, 1), 4).abs().mean()
    return error.abs().mean() + edges + coarse


@torch.no_grad()
def encode_clip(model: TAEHV, frames: Frames, mask: Tensor | None = None) -> Tensor:
    """Crops uint8 [1 + 4 n, H, W, 3] -> latents [C, 1 + n, h, w]; the first frame stands for four, as in a stream."""
    video = torch.from_numpy(np.concatenate([np.repeat(frames[:1], TEMPORAL - 1, 0), frames])).permute(0, 3, 1, 2) / 255
    if mask is not None:
        video = (video - 0.5) * mask + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        latent, _ = model.encode(video[None], model.encoder_memory(1, *frames.shape[1:3]))
    return latent[0].transpose(0, 1).float()


def _snippet(sources: list[Frames], mask: Tensor, recipe: AutoencoderRecipe, rng: np.random.Generator) -> Tensor:
    """Part of a random clip, [frames, 3, size, size] in [0, 1]."""
    source = sources[rng.integers(len(sources))]
    clip = source[rng.integers(len(source))]
    start = rng.integers(len(clip) - recipe.frames + 1)
    top, left = (int(rng.integers(n - recipe.size + 1)) for n in clip.shape[1:3])
    rows, columns = slice(top, top + recipe.size), slice(left, left + recipe.size)
    part = np.array(clip[start : start + recipe.frames, rows, columns])
    video = torch.from_numpy(part).permute(0, 3, 1, 2) / 255
    return (video - 0.5) * mask[rows, columns] + 0.5 if rng.random() < recipe.masked else video
