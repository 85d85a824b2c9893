"""Trains the small SyncNet on drawn faces, to measure offsets in them and in the tiny student's results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lipstream_evaluate.processes import in_processes
from lipstream_evaluate.syncnet import FRAMES, PER_FRAME, SyncNet, SyncNetConfig, mfcc, save_syncnet
from lipstream_models import STUDENTS
from lipstream_models.mel import PAST_FRAMES, SAMPLES_PER_FRAME
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .data.clips import draw_clip

SMALL = SyncNetConfig(
    size=64,
    lip=(16, 32, 48, 48, 64, 128),
    audio=(16, 32, 48, 48, 64, 128),
    hidden=128,
    embedding=128,
    crop=STUDENTS["tiny"].crop_box,
)
_SYNCNET = 4  # seeds [4, ...] are used here only


@dataclass(frozen=True)
class SyncNetRecipe:
    """Sizes of data and training; the defaults give the shipped weights.

    Attributes:
        clips, frames: drawn clips, and frames in each. steps: updates. batch: clips in one of them.
        look: frames of one clip in a step; every five consecutive ones are contrasted with all others of the clip.
        rate: learning rate at its peak.
    """

    clips: int = 480
    frames: int = 81
    steps: int = 1600
    batch: int = 8
    look: int = 32
    rate: float = 2e-3
    seed: int = 0


def train_syncnet(path: Path, recipe: SyncNetRecipe) -> SyncNet:
    """Draw clips, train on them, write the weights to `path`."""
    crops, cepstra = _drawn(recipe)
    torch.manual_seed(recipe.seed)
    net = SyncNet(SMALL)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, recipe.steps, pct_start=0.1)
    rng = np.random.default_rng(recipe.seed)
    bar = tqdm(range(recipe.steps), "syncnet", unit="step")
    for _ in bar:
        optimizer.zero_grad()
        loss = told_apart(net, *_batch(crops, cepstra, recipe, rng))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    net.eval()
    save_syncnet(net, path)
    return net


def told_apart(net: SyncNet, frames: Tensor, cepstra: Tensor) -> Tensor:
    """Contrastive loss of lips and sound within each clip ("perfect match", Chung et al. 2019).

    The cross-entropy of choosing each moment's sound among all sounds of its clip by the embeddings' distance, and each
    moment's lips among all lips.

    Args:
        frames: float [B, 3, T, size, size]. cepstra: float [B, 4 T, 13].
    """
    lips, sound = net.lips(frames), net.sound(cepstra)
    near = -torch.cdist(lips, sound)  # [B, T - 4, T - 4]
    right = torch.arange(near.shape[1]).expand(near.shape[:2])
    return (F.cross_entropy(near.transpose(1, 2), right) + F.cross_entropy(near, right)) / 2


def _batch(
    crops: NDArray[np.uint8], cepstra: NDArray[np.float32], recipe: SyncNetRecipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    which = rng.choice(len(crops), recipe.batch, replace=False)
    starts = rng.integers(0, recipe.frames - recipe.look, recipe.batch)
    seen = np.stack([crops[i, s : s + recipe.look] for i, s in zip(which, starts, strict=True)])
    sound = np.stack(
        [
            cepstra[i, PER_FRAME * s : PER_FRAME * (s + recipe.look - FRAMES) + 20]
            for i, s in zip(which, starts, strict=True)
        ]
    )
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (recipe.batch, 1, 1, 1, 1)).astype(np.float32))
    frames = torch.from_numpy(seen[..., ::-1].copy()).permute(0, 4, 1, 2, 3).float() * gain
    return frames, torch.from_numpy(sound)


def _drawn(recipe: SyncNetRecipe) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Crops uint8 [N, V, S, S, 3] and cepstra float32 [N, 4 V - 1, 13]."""
    crops = np.empty((recipe.clips, recipe.frames, SMALL.size, SMALL.size, 3), np.uint8)
    cepstra = []
    drawn = in_processes(_draw, [(i, recipe.frames) for i in range(recipe.clips)])
    for i, (clip, of_clip) in enumerate(tqdm(drawn, "drawing", recipe.clips, unit="clip")):
        crops[i] = clip
        cepstra.append(of_clip)
    return crops, np.stack(cepstra)


def _draw(job: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    index, frames = job
    clip = draw_clip(np.random.default_rng([_SYNCNET, index]), frames, SMALL.size, STUDENTS["tiny"].crop_box)
    first = PAST_FRAMES * SAMPLES_PER_FRAME
    return clip.target, mfcc(clip.audio[first : first + frames * SAMPLES_PER_FRAME])
