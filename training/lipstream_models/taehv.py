"""TAEHV, the tiny video autoencoder (MIT, Ollin Boer Bohan): 4 frames of 8 h x 8 w pixels <-> 1 latent frame h x w.

Every temporal block reads its own input of the previous frame, so the memory of a stream is one frame per block.
`encode` and `decode` take any number of latent frames per call, and take and return the memories; a clip split over
several calls gives the same frames as in one call. Module names are those of the released weights.

The configuration can replace TAEHV's encoder by a linear one, and make the decoder upsample by 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import TAEHVConfig
from .layers import Conv2d

TEMPORAL = 4


def _conv(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> Conv2d:
    return Conv2d(n_in, n_out, 3, padding=1, stride=stride, bias=bias)


class Clamp(nn.Module):
    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / self.limit) * self.limit


class MemBlock(nn.Module):
    """Residual block whose input is the current frame and the previous one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * channels, channels), nn.ReLU(), _conv(channels, channels), nn.ReLU(), _conv(channels, channels)
        )

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, previous], dim=1)) + x)


class TPool(nn.Module):
    """Fold `stride` consecutive frames into one."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Conv2d(channels * stride, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x.reshape(-1, self.stride * x.shape[1], *x.shape[2:])))


class TGrow(nn.Module):
    """Unfold one frame into `stride` consecutive ones."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return cast(Tensor, y.reshape(-1, x.shape[1], *x.shape[2:]))


class ShuffleGrow(nn.Module):
    """Unfold one frame into `stride` consecutive ones, twice as high and wide; each new pixel has its own weights."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Conv2d(channels, channels * stride * 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.weight.dtype != torch.float32:  # TensorRT has no transposed convolution in bfloat16
            return F.pixel_shuffle(self.conv(x).reshape(-1, 4 * x.shape[1], *x.shape[2:]), 2)
        # Convolution and shuffle as one transposed convolution: it takes half the time in ONNX Runtime.
        weight = torch.unflatten(self.conv.weight.flatten(1).T, 1, (-1, 2, 2))
        y = F.conv_transpose2d(x.to(weight.dtype), weight, stride=2)
        return y.reshape(-1, x.shape[1], *y.shape[2:])


class LinearEncoder(nn.Module):
    """Blocks of 4 frames x `spatial` x `spatial` pixels -> latents, linearly; mid-grey gives zero."""

    def __init__(self, config: TAEHVConfig) -> None:
        super().__init__()
        size = config.spatial
        self.conv = Conv2d(TEMPORAL * 3, config.latent_channels, size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv((x - 0.5).reshape(-1, TEMPORAL * 3, *x.shape[2:])))


class TAEHV(nn.Module):
    """Encoder and decoder. Videos are [B, T, 3, H, W] in [0, 1], latents [B, T / 4, C, H / s, W / s], s = spatial.

    Memories are lists with one tensor [B, channels, h, w] per MemBlock, in the order of the layers.
    """

    def __init__(self, config: TAEHVConfig) -> None:
        super().__init__()
        self.config = config
        n, blocks = config.encoder_width, config.memory_blocks
        stages: list[nn.Module] = []
        if config.encoder == "linear":
            stages += [LinearEncoder(config)]
        else:
            stages += [_conv(3, n), nn.ReLU()]
            for stride in (2, 2, 1):
                stages += [TPool(n, stride), _conv(n, n, stride=2, bias=False), *(MemBlock(n) for _ in range(blocks))]
            stages += [_conv(n, config.latent_channels)]
        self.encoder = nn.Sequential(*stages)
        w = config.decoder_widths
        stages = [Clamp(config.clamp), _conv(config.latent_channels, w[0]), nn.ReLU()]
        for (n_in, n_out), stride in zip(pairwise(w), (1, 2, 2), strict=True):
            stages += [MemBlock(n_in) for _ in range(blocks)]
            if stride == 1 and config.spatial == 4:
                pass
            elif config.upsample == "shuffle":
                stages += [ShuffleGrow(n_in, stride)]
            else:
                stages += [nn.Upsample(scale_factor=2), TGrow(n_in, stride)]
            stages += [_conv(n_in, n_out, bias=False)]
        self.decoder = nn.Sequential(*stages, nn.ReLU(), _conv(w[3], 3))

    def encoder_memory(self, batch: int, height: int, width: int) -> list[Tensor]:
        """Zero memories of a new stream of frames [batch, _, 3, height, width]; none for a linear encoder."""
        return self._memory(self.encoder, [(batch, height // s, width // s) for s in (2, 4, 8)])

    def decoder_memory(self, batch: int, height: int, width: int) -> list[Tensor]:
        """Zero memories of a new stream that decodes to frames [batch, _, 3, height, width]."""
        sizes = (8, 4, 2) if self.config.spatial == 8 else (4, 4, 2)
        return self._memory(self.decoder, [(batch, height // s, width // s) for s in sizes])

    def _memory(self, half: nn.Sequential, sizes: list[tuple[int, int, int]]) -> list[Tensor]:
        blocks = [layer for layer in half if isinstance(layer, MemBlock)]
        parameter = next(self.parameters())
        return [
            torch.zeros(
                b, cast(Conv2d, block.conv[0]).out_channels, h, w, dtype=parameter.dtype, device=parameter.device
            )
            for block, (b, h, w) in zip(blocks, [size for size in sizes for _ in range(len(blocks) // 3)], strict=True)
        ]

    def encode(self, video: Tensor, memory: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """`video` [B, 4 n, 3, H, W] -> (latents [B, n, C, H / s, W / s], memories after it)."""
        return self._run(self.encoder, video, memory)

    def decode(self, latent: Tensor, memory: Sequence[Tensor], *, clamp: bool = True) -> tuple[Tensor, list[Tensor]]:
        """`latent` [B, n, C, h, w] -> (video [B, 4 n, 3, s h, s w] in [0, 1], memories after it).

        The first latent of a stream stands for one frame: the caller drops the first 3 frames of the stream.
        Training sets `clamp` to False, since clamped pixels get no gradient.
        """
        video, after = self._run(self.decoder, latent, memory)
        return video.clamp(0, 1) if clamp else video, after

    @staticmethod
    def _run(half: nn.Sequential, x: Tensor, memory: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        batch = x.shape[0]
        x = x.flatten(0, 1)
        after: list[Tensor] = []
        for layer in half:
            if isinstance(layer, MemBlock):
                frames = torch.unflatten(x, 0, (batch, -1))
                past = torch.cat([memory[len(after)][:, None], frames[:, :-1]], dim=1)
                after.append(frames[:, -1])
                x = layer(x, past.flatten(0, 1))
            else:
                x = layer(x)
        return torch.unflatten(x, 0, (batch, -1)), after
