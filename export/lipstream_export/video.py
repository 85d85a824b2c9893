"""The video_encoder and video_decoder graphs: one chunk per call through a codec, memories in and out."""

from __future__ import annotations

import torch
from lipstream_models import WanVAE
from lipstream_models.parts import Codec
from torch import Tensor, nn


def whole_rows(mask: Tensor) -> int:
    """The number of first rows of `mask` [H, W] that keep every pixel."""
    return int((mask == 1).all(dim=1).long().cumprod(dim=0).sum())


class VideoEncoder(nn.Module):
    """Two encodings of a chunk's frames: unmasked and masked.

    frames [n, 3, H, W] in [0, 1], mask [H, W] (1 = keep), memory.i [2, ...] ->
    latents [2, C, n / 4, H / s, W / s], memory_out.i.

    The first latent is of the unmasked frames, the second of the masked ones, where pixels that are not kept are
    mid-grey (0 in the [-1, 1] convention of the upstream model).

    With a Wan VAE, the first rows that `kept` keeps whole are encoded once, as far as the codec can
    (`WanVAE.encode(shared=)`). The module is then right only for masks that keep these rows, too, and the memories of
    the masked frames have fewer rows.

    Args:
        kept: the stream's mask; None: any mask, both encodings in full.
        pieces: number of parts of the chunk that are encoded one after the other, which divides the memory by about
            that number. The result is the same.
    """

    def __init__(
        self, codec: Codec, frames: int, size: tuple[int, int], pieces: int = 1, kept: Tensor | None = None
    ) -> None:
        super().__init__()
        self.codec, self.frames, self.size, self.pieces = codec, frames, size, pieces
        self.shared = 0 if kept is None else whole_rows(kept)
        memories = range(len(self.memory()))
        self.input_names = ["frames", "mask", *(f"memory.{i}" for i in memories)]
        self.output_names = ["latents", *(f"memory_out.{i}" for i in memories)]

    def example(self) -> tuple[Tensor, ...]:
        frames = torch.zeros(self.frames, 3, *self.size)
        return frames, torch.ones(self.size), *self.memory()

    def memory(self) -> list[Tensor]:
        """Memories of a new stream."""
        if isinstance(self.codec, WanVAE):
            return self.codec.encoder_memory(2, *self.size, self.shared)
        return self.codec.encoder_memory(2, *self.size)

    def forward(self, frames: Tensor, mask: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        both = torch.stack([frames, (frames - 0.5) * mask + 0.5])
        latents: list[Tensor] = []
        after = list(memory)
        for part in torch.chunk(both, self.pieces, dim=1):
            if isinstance(self.codec, WanVAE):
                found, after = self.codec.encode(part, after, self.shared)
            else:
                found, after = self.codec.encode(part, after)
            latents.append(found)
        return torch.cat(latents, dim=1).transpose(1, 2).float(), *after


class VideoDecoder(nn.Module):
    """latent [C, c, h, w], memory.i [1, ...] -> frames [4 c, 3, s h, s w] in [0, 1], memories.

    Args:
        pieces: as in `VideoEncoder`.
    """

    def __init__(self, codec: Codec, latent_frames: int, size: tuple[int, int], pieces: int = 1) -> None:
        super().__init__()
        self.codec, self.latent_frames, self.size, self.pieces = codec, latent_frames, size, pieces
        memories = range(len(codec.decoder_memory(1, *size)))
        self.input_names = ["latent", *(f"memory.{i}" for i in memories)]
        self.output_names = ["frames", *(f"memory_out.{i}" for i in memories)]

    def example(self) -> tuple[Tensor, ...]:
        height, width = self.size
        channels, spatial = self.codec.config.latent_channels, self.codec.config.spatial
        latent = torch.zeros(channels, self.latent_frames, height // spatial, width // spatial)
        return latent, *self.codec.decoder_memory(1, height, width)

    def forward(self, latent: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        frames: list[Tensor] = []
        after = list(memory)
        for part in torch.chunk(latent.transpose(0, 1)[None], self.pieces, dim=1):
            found, after = self.codec.decode(part, after)
            frames.append(found[0])
        return torch.cat(frames).float(), *after
