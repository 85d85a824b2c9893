"""The tiny student's video codec: an encoder fitted in closed form, a decoder that starts as its exact inverse.

A latent is the `latent_channels` principal components of a block of 4 frames x 4 x 4 pixels x RGB around mid-grey.
Training this encoder by gradient descent takes most of an hour until it has learned colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from lipstream_models import TAEHV, WanVAE
from lipstream_models.taehv import TEMPORAL, LinearEncoder, MemBlock, ShuffleGrow
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .critic import Adversary
from .optim import Average, Descent

Frames = NDArray[np.uint8]


def to_video(frames: Frames) -> Tensor:
    """uint8 [..., V, H, W, 3] -> float32 [..., V, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(frames)).movedim(-1, -3) / 255


@torch.no_grad()
def fit_codec(model: TAEHV, clips: Frames, mask: Tensor, *, blocks: int = 60_000, seed: int = 0) -> None:
    """Fit the linear encoder of `model` to blocks of `clips` uint8 [N, V, H, W, 3], and make its decoder the inverse.

    Component k, of variance l_k, is scaled by 2.2 l_k^(-1/4), between no scaling and whitening: so the first
    components, which carry most of the picture, weigh more in the loss. Blocks are drawn where `mask` [H, W] is 0.
    """
    size, channels = model.config.spatial, model.config.latent_channels
    rng = np.random.default_rng(seed)
    places = np.argwhere(mask[: -size + 1, : -size + 1].numpy() < 0.5)
    drawn = np.empty((blocks, TEMPORAL, size, size, 3), np.uint8)
    for block in drawn:
        clip, start = clips[rng.integers(len(clips))], rng.integers(clips.shape[1] - TEMPORAL + 1)
        y, x = places[rng.integers(len(places))]
        block[:] = clip[start : start + TEMPORAL, y : y + size, x : x + size]
    flat = (to_video(drawn) - 0.5).flatten(1).double()  # [blocks, 4 * 3 * size * size]
    variance, vectors = torch.linalg.eigh(flat.T @ flat / blocks)
    variance, vectors = variance.flip(0)[:channels], vectors.flip(1)[:, :channels]
    scale = 2.2 * variance ** (-0.25)
    encoder = cast(LinearEncoder, model.encoder[0])
    encoder.conv.weight.copy_((vectors * scale).T.reshape(encoder.conv.weight.shape))
    invert(model, (vectors / scale).float())


@torch.no_grad()
def invert(model: TAEHV, back: Tensor) -> None:
    """Make the decoder compute ``back @ latent + 0.5``, exactly except where its ReLUs clip values below black.

    `back` is [4 * 3 * s * s, C], a block's pixels (frame, channel, row, column) from its latent. Up to the first
    `ShuffleGrow` two channels carry each latent, its positive and its negative part, beside a constant channel; after
    it the channels are pixels, which are never negative. Residual branches start near zero.
    """
    size, channels = model.config.spatial, model.config.latent_channels
    for layer in model.decoder:
        if isinstance(layer, MemBlock):
            last = cast(nn.Conv2d, layer.conv[-1])
            last.weight.mul_(0.02)
            cast(Tensor, last.bias).zero_()
        elif isinstance(layer, nn.Conv2d):
            # All other weights start small.
            layer.weight.mul_(0.05)
            if layer.bias is not None:
                layer.bias.zero_()
    convolutions = [layer for layer in model.decoder if isinstance(layer, nn.Conv2d)]
    first, second, third, fourth, last = convolutions
    grow = [layer for layer in model.decoder if isinstance(layer, ShuffleGrow)]
    carried = 2 * channels + 1
    assert carried <= second.out_channels, "the decoder is too narrow for its latents"
    for k in range(channels):
        _carry(first, k, 2 * k, 1.0)
        _carry(first, k, 2 * k + 1, -1.0)
    first.weight[2 * channels] = 0
    cast(Tensor, first.bias)[2 * channels] = 1
    for k in range(carried):
        _carry(second, k, k, 1.0)

    # The first ShuffleGrow computes all pixels of each half-size block: 2 frames x 3 colours x half x half.
    half = size // 2
    inner = 2 * 3 * half * half
    assert inner <= third.out_channels, "the decoder is too narrow for the pixels of a block"
    pixels = back.reshape(2, 2, 3, 2, half, 2, half, channels)  # halves and places in time, colour, halves and places
    wide = torch.unflatten(
        grow[0].conv.weight, 0, (2, grow[0].conv.in_channels, 2, 2)
    )  # [stride, channel, y, x, in, 1, 1]
    wide.mul_(0.05)
    for frame in range(2):
        for y in range(2):
            for x in range(2):
                target = pixels[frame, :, :, y, :, x].reshape(inner, channels)
                rows = wide[frame, :inner, y, x, :, 0, 0]
                rows.zero_()
                rows[:, 0 : 2 * channels : 2], rows[:, 1 : 2 * channels : 2] = target, -target
                rows[:, 2 * channels] = 0.5
    for k in range(inner):
        _carry(third, k, k, 1.0)

    # The second one moves them to their positions; three channels remain, the colours.
    wide = torch.unflatten(grow[1].conv.weight, 0, (2, grow[1].conv.in_channels, 2, 2))
    wide.mul_(0.05)
    place = torch.arange(inner).reshape(2, 3, half, half)
    for frame in range(2):
        for y in range(2):
            for x in range(2):
                rows = wide[frame, :3, y, x, :, 0, 0]
                rows.zero_()
                for colour in range(3):
                    rows[colour, place[frame, colour, y, x]] = 1
    for k in range(3):
        _carry(fourth, k, k, 1.0)
        _carry(last, k, k, 1.0)


def _carry(layer: nn.Conv2d, source: int, target: int, factor: float) -> None:
    """Make output channel `target` of a 3 x 3 convolution `factor` times the input channel `source`."""
    layer.weight[target] = 0
    layer.weight[target, source, 1, 1] = factor


def linear_decoder(model: TAEHV) -> Callable[[Tensor], Tensor]:
    """The inverse of the linear encoder of `model`: latents [N, C, h, w] -> pictures [N, 4, 3, s h, s w]."""
    weight = cast(LinearEncoder, model.encoder[0]).conv.weight.detach()
    back = weight / weight.square().sum((1, 2, 3), keepdim=True)  # its rows are orthogonal

    def decode(latents: Tensor) -> Tensor:
        pixels = F.conv_transpose2d(latents, back, stride=model.config.spatial)
        return torch.unflatten(pixels, 1, (TEMPORAL, 3)) + 0.5

    return decode


@torch.no_grad()
def encode_clip(
    model: TAEHV | WanVAE, frames: Frames, mask: Tensor | None = None, *, piece: int | None = None
) -> Tensor:
    """Crops uint8 [1 + 4 n, H, W, 3] -> latents [C, 1 + n, h, w]; the first frame is repeated, as in a stream.

    Args:
        mask: [H, W]; grey where it is 0. piece: frames at once, a multiple of 4; None for all.
    """
    device = next(model.parameters()).device
    frames = np.concatenate([np.repeat(frames[:1], TEMPORAL - 1, 0), frames])
    memory = model.encoder_memory(1, *frames.shape[1:3])
    latents = []
    for start in range(0, len(frames), piece or len(frames)):
        video = to_video(frames[start : start + (piece or len(frames))]).to(device)
        if mask is not None:
            video = (video - 0.5) * mask.to(device) + 0.5
        latent, memory = model.encode(video[None], memory)
        latents.append(latent[0])
    return torch.cat(latents).transpose(0, 1)


@dataclass(frozen=True)
class DecoderRecipe:
    """`steps` batches of `batch` pieces of `frames` latent frames and `size` latent pixels square, most on the mouth.

    Half of the latents are encoded clips, half a student's output; `noise` is added to both. Two terms keep the decoder
    from blurring uncertain latents: `detail` is the weight of the local edge strength, and from the share `sharp_from`
    of the steps on the loss of an `Adversary` is added, with `sharp` times the gradient of all other terms: late and
    weak, since an early and strong one covers the skin with a fine hatching. `grid` is
    the weight of `border_error`, of the borders of latents and once more of those of tokens: a student makes its
    latents in tokens, each of `token` latents a side by itself, and where two of them do not fit the decoder would show
    an edge.
    """

    steps: int = 1500
    batch: int = 10
    frames: int = 3
    size: int = 12
    learning_rate: float = 7e-4
    noise: float = 0.1
    detail: float = 2.0
    sharp: float = 0.25
    sharp_from: float = 0.7
    grid: float = 3.0
    token: int = 3


def train_decoder(
    model: TAEHV,
    clips: Frames,
    truth: Tensor,
    rollouts: Tensor,
    recipe: DecoderRecipe,
    *,
    seed: int,
    progress: Callable[[float], None],
) -> TAEHV:
    """Train the decoder of `model` to reconstruct `clips` uint8 [N, 4 F - 3, H, W, 3] from latents [N, C, F, h, w].

    The encoder is frozen, so that the student's latents do not change. `model` gets the moving average of the weights.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    descent = Descent([model.decoder], recipe.steps, recipe.learning_rate)
    adversary = Adversary(cast(nn.Conv2d, model.decoder[-1]).weight, recipe.sharp, recipe.steps, recipe.learning_rate)
    average = Average(model.decoder)
    pixels = model.config.spatial * recipe.size
    for step in range(recipe.steps):
        kinds = [truth if rng.random() < 0.5 else rollouts for _ in range(recipe.batch)]
        drawn = [_piece(clips, latents, model, recipe, rng) for latents in kinds]
        latent, video = (torch.stack(x) for x in zip(*drawn, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            noisy = latent + recipe.noise * torch.randn_like(latent)
            out, _ = model.decode(noisy, model.decoder_memory(recipe.batch, pixels, pixels), clamp=False)
        out = out.float()
        loss = picture_loss(out, video, detail=recipe.detail)
        for side in (model.config.spatial, recipe.token * model.config.spatial):
            loss = loss + recipe.grid * border_error(out, video, side)
        progress(loss.item())
        if step >= recipe.sharp_from * recipe.steps:
            made, real = (x.flatten(0, 1)[:: TEMPORAL // 2] for x in (out, video))
            descent.step(loss + adversary.loss(loss, made))
            adversary.learn(real, made)
        else:
            descent.step(loss)
        average.update()
    average.apply()
    return model.eval()


def _piece(
    clips: Frames, latents: Tensor, model: TAEHV, recipe: DecoderRecipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Latents [frames, C, n, n] of a random place, a whole token, and their pixels [4 frames, 3, s n, s n]."""
    n, s = recipe.size, model.config.spatial
    clip, first = rng.integers(len(latents)), 1 + rng.integers(latents.shape[2] - recipe.frames)
    top, left = (recipe.token * int(rng.integers((side - n) // recipe.token + 1)) for side in latents.shape[3:])
    latent = latents[clip, :, first : first + recipe.frames, top : top + n, left : left + n]
    frames = clips[clip, TEMPORAL * first - 3 : TEMPORAL * (first + recipe.frames) - 3]
    return latent.float().transpose(0, 1), to_video(frames[:, s * top : s * (top + n), s * left : s * (left + n)])


def picture_loss(found: Tensor, wanted: Tensor, *, detail: float = 0.0) -> Tensor:
    """Mean absolute error of pictures [B, T, 3, H, W], of their differences in space, their 4 x 4 means and colour.

    `detail` is the weight of the error of `edge_strength`, which ignores the exact position of edges.
    """
    error = (found - wanted).flatten(0, 1)
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = F.avg_pool2d(error, 4).abs().mean()
    chroma = (error - error.mean(1, keepdim=True)).abs().mean()
    loss = error.abs().mean() + edges + coarse + 2 * chroma
    if detail:
        loss = loss + detail * (edge_strength(found) - edge_strength(wanted)).abs().mean()
    return loss


def border_error(found: Tensor, wanted: Tensor, side: int) -> Tensor:
    """Mean absolute error of the differences across the borders of blocks of `side` pixels, from the first row on.

    Pictures are [..., H, W].
    """
    error = found - wanted
    down, across = (torch.arange(side - 1, n - 1, side) for n in error.shape[-2:])
    return error.diff(dim=-1)[..., across].abs().mean() + error.diff(dim=-2)[..., down, :].abs().mean()


def edge_strength(video: Tensor) -> Tensor:
    """Mean length of the luma gradient in 8 x 8 neighbourhoods, half overlapping, [B, T, 3, H, W] -> [B T, 1, h, w]."""
    luma = video.flatten(0, 1).mean(1, keepdim=True)
    across, down = luma.diff(dim=-1)[..., :-1, :], luma.diff(dim=-2)[..., :-1]
    return F.avg_pool2d((across.square() + down.square() + 1e-6).sqrt(), 8, 4)
