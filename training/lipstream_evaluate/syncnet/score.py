"""Sync-C, Sync-D and the offset, as `syncnet_python` computes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from lipstream_models.mel import SAMPLES_PER_FRAME
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .mfcc import mfcc
from .model import FRAMES, SyncNet

SHIFTS = 15
"""Frames by which the sound is shifted to either side."""
_AT_ONCE = 64  # frames per call of the net, which takes about 300 MB for crops of 224 pixels


@dataclass(frozen=True)
class SyncScore:
    """The agreement of lips and sound.

    Attributes:
        confidence: Sync-C (LSE-C): median minus least of the mean distances over all shifts; high is good.
        distance: Sync-D (LSE-D): the least mean distance; low is good.
        offset: shift in frames of the least mean distance; positive: the mouth is late, the sound is first.
    """

    confidence: float
    distance: float
    offset: int


def sync_score(net: SyncNet, crops: NDArray[np.uint8], audio: NDArray[np.float32]) -> SyncScore | None:
    """Score one clip; None if it has fewer than 6 frames, or is silent.

    The last window of five frames is left out, as the published code does.

    Args:
        crops: uint8 [T, S, S, 3] RGB at 25 a second, cut as `net.config.crop` describes.
        audio: float32 [samples] at 16 kHz, starting with the first frame.
    """
    frames = min(len(crops), len(audio) // SAMPLES_PER_FRAME)
    if frames <= FRAMES or not np.any(audio):
        return None
    lips, sound = embed(net, crops[:frames], audio[: frames * SAMPLES_PER_FRAME])
    return score(lips[: frames - FRAMES], sound[: frames - FRAMES])


def score(lips: Tensor, sound: Tensor, shifts: int = SHIFTS, *, padded: bool = True) -> SyncScore:
    """The score from embeddings [n, E].

    Args:
        padded: the sound is zero beyond its ends, as in the published code. False: each shift is scored where lips and
            sound overlap, as the reward of Lip Forcing does; such scores differ by up to 0.9.
    """
    if padded:
        means = distances(lips, sound, shifts).mean(0)
    else:
        n = len(lips)
        moved = range(-shifts, shifts + 1)
        pairs = [(lips[max(0, -s) : n - max(0, s)], sound[max(0, s) : n + min(0, s)]) for s in moved]
        means = torch.stack([F.pairwise_distance(*pair).mean() for pair in pairs])
    least = int(means.argmin())
    distance = float(means[least])
    return SyncScore(float(means.median()) - distance, distance, shifts - least)


def distances(lips: Tensor, sound: Tensor, shifts: int = SHIFTS) -> Tensor:
    """Distance of each moment's lips from the sound `shifts` frames before to `shifts` after, [n, 2 shifts + 1].

    Beyond the ends the sound's embedding is zero, as in the published code; embeddings are [n, E].
    """
    around = F.pad(sound, (0, 0, shifts, shifts)).unfold(0, 2 * shifts + 1, 1).transpose(1, 2)[: len(lips)]
    return F.pairwise_distance(lips[:, None].expand_as(around), around)


@torch.inference_mode()
def embed(net: SyncNet, crops: Iterable[NDArray[np.uint8]], audio: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Embeddings [T - 4, E] of the lips in T crops uint8 [S, S, 3] RGB, and [T - 5, E] of 640 T samples at 16 kHz.

    Crops of another size are resized to the net's.
    """
    reader = LipReader(net)
    for crop in crops:
        reader.push(crop)
    return reader.result(), embed_audio(net, audio)


@torch.inference_mode()
def embed_audio(net: SyncNet, audio: NDArray[np.float32]) -> Tensor:
    """Embeddings [T - 5, E] of 640 T samples at 16 kHz: the last window lacks a cepstrum."""
    device = next(net.parameters()).device
    return net.sound(torch.from_numpy(mfcc(audio)).to(device)[None])[0].cpu()


class LipReader:
    """Embeds lips crop by crop, with a bounded number of crops in memory."""

    def __init__(self, net: SyncNet) -> None:
        self._net = net
        self._waiting: list[NDArray[np.uint8]] = []
        self._done: list[Tensor] = []

    def push(self, crop: NDArray[np.uint8]) -> None:
        """Add the next crop, uint8 [S, S, 3] RGB."""
        size = self._net.config.size
        if crop.shape[0] != size:
            crop = np.asarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
        self._waiting.append(crop)
        if len(self._waiting) == _AT_ONCE:
            self._run()

    def result(self) -> Tensor:
        """Embeddings float [T - 4, E] of all crops so far; [0, E] of fewer than five."""
        self._run()
        return torch.cat(self._done) if self._done else torch.zeros(0, self._net.config.embedding)

    @torch.inference_mode()
    def _run(self) -> None:
        if len(self._waiting) < FRAMES:
            return
        device = next(self._net.parameters()).device
        frames = torch.from_numpy(np.stack(self._waiting)[..., ::-1].copy()).to(device).float()
        self._done.append(self._net.lips(frames.permute(3, 0, 1, 2)[None])[0].cpu())
        self._waiting = self._waiting[-FRAMES + 1 :]
