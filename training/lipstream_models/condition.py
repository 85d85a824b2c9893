"""The condition of a batch of whole clips: the student's input besides the noisy latents."""

from __future__ import annotations

import torch
from torch import Tensor


def assemble_condition(first: Tensor, mask: Tensor, masked: Tensor, sequence: Tensor) -> Tensor:
    """Condition [B, 3 C + 1, F, h, w]: reference frame, mask (1 = generate), masked video, sequence.

    Args:
        first: latents of the reference frame, [B, C, 1, h, w].
        mask: latent mask [h, w], 1 = keep.
        masked: latents of the driving video with the mouth hidden, [B, C, F, h, w].
        sequence: `masked` or the unmasked driving video, [B, C, F, h, w]; see `StudentConfig.sequence`.
    """
    generated = (1 - mask).expand(len(masked), 1, masked.shape[2], *mask.shape)
    return torch.cat([first.expand_as(masked), generated, masked, sequence], dim=1)


def fill_first_latent_frame(x: Tensor, temporal: int = 4) -> Tensor:
    """Repeat the first video frame of x [B, 1 + temporal n, ...] to `temporal` frames.

    A clip's first latent frame stands for one video frame, the others for `temporal` each.
    """
    return torch.cat([x[:, :1].expand(-1, temporal - 1, *x.shape[2:]), x], dim=1)
