"""The video autoencoder of Wan 2.1 (Apache-2.0), causal in time, for streams: 4 video frames <-> 1 latent frame.

The upstream code runs on the first frame alone and then on four at a time, and keeps a cache in every convolution. Here
a call takes any number of whole latent frames, and takes and returns the memories. The stream's first latent frame
stands for one video frame, the last of its four; the encoder ignores the three before it, and the caller of the decoder
drops them. The first memory is 0 in the first call of a stream, then 1. In the first call, as upstream:

* convolutions read zeros before the first frame;
* where time is halved or doubled, the first frame skips the temporal convolution; the one that doubles also reads zeros
  in its place for the frames after it.

A video and its masked copy are equal in the rows above the mask. The encoder can compute such rows once, down to a
resolution where too few of them are left (`Encoder.levels`).

Module names are those of the released weights. Norms are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Conv2d, Conv3d

TEMPORAL = 4
MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
"""Mean and standard deviation of the latents per channel, by which encoding normalises them."""


@dataclass(frozen=True)
class WanVAEConfig:
    """Sizes; the defaults are those of the released ``Wan2.1_VAE``.

    Attributes:
        dim: channels of the first stage. widths: of the stages, in units of `dim`. blocks: residual blocks of an
            encoder's stage (a decoder's has one more). downsample: whether the end of a stage halves time, too.
    """

    dim: int = 96
    latent_channels: int = 16
    widths: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    downsample: tuple[bool, ...] = (False, True, True)

    @property
    def spatial(self) -> int:
        """Video pixels per latent pixel along each axis."""
        return 1 << len(self.downsample)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> WanVAEConfig:
        """The sizes of a state dict.

        Raises:
            KeyError, IndexError: it is not one of a Wan VAE.
        """
        dim, channels = weights["encoder.conv1.weight"].shape[0], weights["conv2.weight"].shape[0]
        widths: list[int] = []
        downsample: list[bool] = []
        blocks = layer = 0
        while True:
            name = f"encoder.downsamples.{layer}"
            if f"{name}.residual.6.weight" in weights:
                width = weights[f"{name}.residual.6.weight"].shape[0] // dim
                blocks += not downsample
                widths[len(downsample) :] = [width]
            elif f"{name}.resample.1.weight" in weights:
                downsample.append(f"{name}.time_conv.weight" in weights)
            else:
                return cls(dim, channels, tuple(widths), blocks, tuple(downsample))
            layer += 1


class _Call:
    """The memories of one call, which the layers read and replace in their order."""

    def __init__(self, memory: Sequence[Tensor]) -> None:
        self._started, *rest = memory
        self._past = iter(rest)
        self.after = [0 * self._started + 1]

    def hide(self, x: Tensor, frames: int) -> Tensor:
        """`x` [B, C, T, H, W], in a stream's first call with zeros in its first `frames` frames."""
        if not frames:
            return x
        known = (torch.arange(x.shape[2], device=x.device) >= frames).to(x.dtype)
        kept: Tensor = x * torch.maximum(known, self._started.to(x.dtype))[:, None, None]
        return kept

    def first(self, x: Tensor, passed: Tensor, frame: int) -> Tensor:
        """`x` [B, C, T, H, W], in a stream's first call with `frame` of `passed` in place of its own."""
        here = (torch.arange(x.shape[2], device=x.device) == frame) & (self._started < 0.5)
        return torch.where(here[:, None, None], passed, x)

    def extend(self, x: Tensor, keep: int) -> Tensor:
        """`x` after the last frames of the previous call; its last `keep` frames are the memory for the next call."""
        past = next(self._past)
        x = torch.cat([past, x.to(past.dtype)], dim=2)
        self.after.append(x[:, :, -keep:])
        return x


class CausalConv3d(Conv3d):
    """3 x 3 x 3 convolution over a frame and the two before it; height and width are padded with zeros."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, 3, padding=(0, 1, 1))

    def run(self, x: Tensor, call: _Call, lead: int) -> Tensor:
        return cast(Tensor, self(call.extend(call.hide(x, lead), 2)))


class RMSNorm(nn.Module):
    """Every pixel's channels divided by their root mean square."""

    def __init__(self, dim: int, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1] ** 0.5
        return cast(Tensor, (F.normalize(x.float(), dim=1) * size * self.gamma.float()).to(x.dtype))


class ResidualBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(n_in, 3),
            nn.SiLU(),
            CausalConv3d(n_in, n_out),
            RMSNorm(n_out, 3),
            nn.SiLU(),
            nn.Dropout(0.0),
            CausalConv3d(n_out, n_out),
        )
        self.shortcut = Conv3d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def run(self, x: Tensor, call: _Call, lead: int) -> Tensor:
        y = x
        for layer in self.residual:
            y = layer.run(y, call, lead) if isinstance(layer, CausalConv3d) else layer(y)
        return cast(Tensor, y + self.shortcut(x))


class AttentionBlock(nn.Module):
    """Attention of one head over the pixels of a frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = Conv2d(dim, 3 * dim, 1)
        self.proj = Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = _frames(x)
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(frames.shape)
        return x + _clip(self.proj(y), x.shape[0])


class Resample(nn.Module):
    """Halves or doubles height and width, and with `time` the number of frames."""

    def __init__(self, dim: int, *, up: bool, time: bool) -> None:
        super().__init__()
        self.up = up
        if up:
            self.resample = nn.Sequential(nn.Upsample(scale_factor=2.0), Conv2d(dim, dim // 2, 3, padding=1))
        else:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), Conv2d(dim, dim, 3, stride=2))
        self.time_conv: Conv3d | None = None
        if time:
            channels, stride = (2 * dim, 1) if up else (dim, 2)
            self.time_conv = Conv3d(dim, channels, (3, 1, 1), stride=(stride, 1, 1))

    def run(self, x: Tensor, call: _Call, lead: int) -> Tensor:
        """`lead`: frames of `x` before a stream's first one."""
        if self.up and self.time_conv:
            past = call.extend(call.hide(x, lead + 1), 2)
            twice = torch.unflatten(self.time_conv(past), 1, (2, -1))  # [B, 2, C, T, H, W]
            twice = twice.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            x = call.first(twice, x.repeat_interleave(2, dim=2).to(twice.dtype), 2 * lead + 1)
        x = _clip(self.resample(_frames(x)), x.shape[0])
        if not self.up and self.time_conv:
            x = call.hide(x, lead)
            halved = self.time_conv(call.extend(x, 1))
            x = call.first(halved, x[:, :, 1::2].to(halved.dtype), lead // 2)
        return x


def _frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def _clip(x: Tensor, batch: int) -> Tensor:
    """[B T, C, H, W] -> [B, C, T, H, W]."""
    return torch.unflatten(x, 0, (batch, -1)).transpose(1, 2)


def _through(layers: Iterable[nn.Module], x: Tensor, call: _Call, rate: int) -> tuple[Tensor, int]:
    """`x` [B, C, T, H, W] with `rate` frames to a latent frame, through layers of an encoder or a decoder; its rate."""
    for layer in layers:
        match layer:
            case CausalConv3d() | ResidualBlock() | Resample():
                x = layer.run(x, call, rate - 1)
            case _:
                x = layer(x)
        if isinstance(layer, Resample) and layer.time_conv:
            rate = 2 * rate if layer.up else rate // 2
    return x, rate


def _convolutions(layers: Iterable[nn.Module]) -> list[CausalConv3d]:
    return [x for layer in layers for x in layer.modules() if isinstance(x, CausalConv3d)]


@dataclass(frozen=True)
class Level:
    """The layers of one resolution, up to and with its `Resample`, for two videos that share rows.

    Attributes:
        start: first row of the second video that is computed, even.
        shared: rows of the result in which both videos are equal. The second video's are right from there on.
    """

    layers: list[nn.Module]
    start: int
    shared: int


class Encoder(nn.Module):
    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        dims = [config.dim * width for width in (1, *config.widths)]
        self.conv1 = CausalConv3d(3, dims[0])
        stages: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(pairwise(dims)):
            stages += [ResidualBlock(n_in if block == 0 else n_out, n_out) for block in range(config.blocks)]
            if i < len(config.downsample):
                stages += [Resample(n_out, up=False, time=config.downsample[i])]
        self.downsamples = nn.Sequential(*stages)
        self.middle = _middle(dims[-1])
        self.head = nn.Sequential(RMSNorm(dims[-1], 3), nn.SiLU(), CausalConv3d(dims[-1], 2 * config.latent_channels))

    def layers(self) -> Iterator[nn.Module]:
        yield from (self.conv1, *self.downsamples, *self.middle, *self.head)

    def levels(self, shared: int) -> tuple[list[Level], list[nn.Module]]:
        """The first levels, where the second of two videos has rows that are not computed; and the layers after them.

        A convolution reads one row above and one below. So each leaves one row less that both videos share, and one row
        more below `start` that read zeros in place of the rows above `start`.

        Args:
            shared: number of first rows in which two videos are equal.
        """
        levels: list[Level] = []
        layers: list[nn.Module] = []
        for layer in self.layers():
            layers.append(layer)
            if isinstance(layer, Resample) and shared:
                reach = len(_convolutions(layers))
                shared = max(0, (shared - reach - 1) // 2)  # row i of the result is computed from rows 2 i to 2 i + 2
                start = 2 * (shared - (reach + 1) // 2)
                if start > 0:
                    levels.append(Level(layers, start, shared))
                    layers = []
                else:
                    shared = 0
        return levels, layers


class Decoder(nn.Module):
    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        dims = [config.dim * width for width in (widths[0], *widths)]
        self.conv1 = CausalConv3d(config.latent_channels, dims[0])
        self.middle = _middle(dims[0])
        stages: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(pairwise(dims)):
            first = n_in // 2 if i else n_in  # the stage before halved its channels
            stages += [ResidualBlock(first if block == 0 else n_out, n_out) for block in range(config.blocks + 1)]
            if i < len(config.downsample):
                stages += [Resample(n_out, up=True, time=config.downsample[::-1][i])]
        self.upsamples = nn.Sequential(*stages)
        self.head = nn.Sequential(RMSNorm(dims[-1], 3), nn.SiLU(), CausalConv3d(dims[-1], 3))

    def layers(self) -> Iterator[nn.Module]:
        yield from (self.conv1, *self.middle, *self.upsamples, *self.head)


def _middle(dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim))


class WanVAE(nn.Module):
    """Encoder and decoder. Videos are [B, T, 3, H, W] in [0, 1], latents [B, T / 4, C, H / 8, W / 8], normalised.

    Memories are lists of tensors: 1 if the stream has begun, else 0, [1], and per temporal convolution its last inputs
    [B, channels, 1 or 2, h, w].

    The encoder's argument `shared` is the number of first rows in which the second half of a batch equals the first.
    Most of them are then computed, and kept in the memories, for the first half only. The sums are the same; a library
    whose convolutions add in an order that depends on batch and height gives other last bits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.conv1 = Conv3d(2 * channels, 2 * channels, 1)
        self.conv2 = Conv3d(channels, channels, 1)
        self.register_buffer("mean", torch.tensor(MEAN[:channels])[:, None, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD[:channels])[:, None, None, None], persistent=False)

    def encoder_memory(self, batch: int, height: int, width: int, shared: int = 0) -> list[Tensor]:
        """Zero memories of a new stream of frames [batch, _, 3, height, width]."""
        levels, rest = self.encoder.levels(shared)
        found = [self.conv1.weight.new_zeros(1)]
        for level in levels:
            for rows in (height, height - level.start):
                found += self._memory(level.layers, batch // 2, rows, width)
            height, width = height // 2, width // 2
        return found + self._memory(rest, batch, height, width)

    def decoder_memory(self, batch: int, height: int, width: int) -> list[Tensor]:
        """Zero memories of a new stream that decodes to frames [batch, _, 3, height, width]."""
        spatial = self.config.spatial
        memories = self._memory(self.decoder.layers(), batch, height // spatial, width // spatial)
        return [self.conv1.weight.new_zeros(1), *memories]

    def _memory(self, layers: Iterable[nn.Module], batch: int, height: int, width: int) -> list[Tensor]:
        found: list[Tensor] = []

        def add(channels: int, frames: int) -> None:
            found.append(self.conv1.weight.new_zeros(batch, channels, frames, height, width))

        for layer in layers:
            for convolution in _convolutions([layer]):
                add(convolution.in_channels, 2)
            if isinstance(layer, Resample):
                if layer.up and layer.time_conv:
                    add(layer.time_conv.in_channels, 2)
                height, width = (2 * height, 2 * width) if layer.up else (height // 2, width // 2)
                if not layer.up and layer.time_conv:
                    add(layer.time_conv.in_channels, 1)
        return found

    def encode(self, video: Tensor, memory: Sequence[Tensor], shared: int = 0) -> tuple[Tensor, list[Tensor]]:
        """`video` [B, 4 n, 3, H, W] -> (latents [B, n, C, H / 8, W / 8], memories after it): the posterior's mean."""
        call = _Call(memory)
        x, rate = 2 * video.transpose(1, 2) - 1, TEMPORAL
        levels, rest = self.encoder.levels(shared)
        if levels:
            first, second = x.chunk(2)
            second = second[..., levels[0].start :, :]
            for level, start in zip(levels, [*(following.start for following in levels[1:]), 0], strict=True):
                first, _ = _through(level.layers, first, call, rate)
                second, rate = _through(level.layers, second, call, rate)
                own = second[..., level.shared - level.start // 2 :, :]
                second = torch.cat([first[..., start : level.shared, :], own], dim=-2)
            x = torch.cat([first, second])
        x, _ = _through(rest, x, call, rate)
        mean = self.conv1(x).chunk(2, dim=1)[0].float()
        return ((mean - self.mean) / self.std).transpose(1, 2), call.after

    def decode(self, latent: Tensor, memory: Sequence[Tensor], *, clamp: bool = True) -> tuple[Tensor, list[Tensor]]:
        """`latent` [B, n, C, h, w] -> (video [B, 4 n, 3, 8 h, 8 w] in [0, 1], memories after it).

        The caller drops the first 3 frames of the stream.
        """
        call = _Call(memory)
        x = self.conv2(latent.transpose(1, 2).float() * self.std + self.mean)
        x, _ = _through(self.decoder.layers(), x, call, 1)
        video = (x.transpose(1, 2).float() + 1) / 2
        return video.clamp(0, 1) if clamp else video, call.after
