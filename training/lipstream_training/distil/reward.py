"""SyncNet's scores of generated clips, as reward and as measure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from lipstream_evaluate.syncnet import SyncNet, SyncScore, mfcc, score
from lipstream_models.mel import PAST_FRAMES, SAMPLES_PER_FRAME
from torch import Tensor
from torch.nn import functional as F

from ..prepare.shards import Shards
from .recipe import Scoring


@torch.no_grad()
def sync_scores(net: SyncNet, video: Tensor, cepstra: Tensor, scoring: Scoring = "published") -> list[SyncScore]:
    """Scores of video [B, V, 3, H, W] in [0, 1] with the cepstra of its sound [B, 4 V - 1, 13].

    Args:
        scoring: "published": as SyncNet's published code scores files: pictures are resized to the net's size and
            rounded to whole numbers, and the sound is zero beyond its ends. "upstream": pictures are truncated to whole
            numbers and then resized, and only overlapping parts are scored.
    """
    size = net.config.size
    frames = video.flatten(0, 1).float().flip(1) * 255  # BGR
    if scoring == "upstream":
        frames = frames.floor()
    frames = F.interpolate(frames, (size, size), mode="bilinear")
    if scoring == "published":
        frames = frames.round()
    clips = torch.unflatten(frames, 0, video.shape[:2]).transpose(1, 2)
    sound = net.sound(cepstra)
    lips = [net.lips(clip[None])[0][: sound.shape[1]] for clip in clips]
    return [score(a, b, padded=scoring == "published") for a, b in zip(lips, sound, strict=True)]


class SyncReward:
    """Sync-C of the clips of prepared shards; a `Judge`.

    Args:
        decode: latents [B, C, F, h, w] -> video [B, V, 3, H, W] in [0, 1].
        scoring: as of `sync_scores`.
    """

    def __init__(
        self,
        net: SyncNet,
        decode: Callable[[Tensor], Tensor],
        shards: Shards,
        scoring: Scoring = "published",
    ) -> None:
        self._net, self._decode, self._shards, self._scoring = net, decode, shards, scoring

    def __call__(self, latents: Tensor, clips: tuple[int, ...]) -> Tensor:
        self._net.to(latents.device)
        video = self._decode(latents)
        begin = PAST_FRAMES * SAMPLES_PER_FRAME
        end = begin + video.shape[1] * SAMPLES_PER_FRAME
        cepstra = torch.from_numpy(np.stack([mfcc(self._shards.sound(clip)[begin:end]) for clip in clips]))
        found = sync_scores(self._net, video, cepstra.to(latents.device), self._scoring)
        return torch.tensor([one.confidence for one in found], device=latents.device)
