"""The tiny student from nothing: draw people, train the autoencoder, the teacher, and the causal student from it.

Four stages, each left in the output folder when it is done and found there by the next run.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .autoencoder import AutoencoderRecipe, DecoderRecipe, encode_clip, initialise, train_autoencoder, train_decoder
from .checkpoint import Checkpoint, round_to_bfloat16
from .data.clips import AUDIO_CONTEXT, draw_clip, training_rng
from .data.mask import compositing_mask, latent_mask, mouth_mask
from .diffusion import DiffusionRecipe, Latents, train_student, train_teacher
from .models import STUDENTS, TAEHV, CausalDiT
from .models.config import TINY_TAEHV
from .models.mel import LOOKBACK, LogMel

SIZE = 8 * STUDENTS["tiny"].latent_size[0]
MODEL = {
    "name": "tiny",
    "licence": "Apache-2.0",
    "description": "Lip Forcing's architecture at toy widths, trained on drawn faces and synthetic speech.",
}


@dataclass(frozen=True)
class TinyRecipe:
    """How much of everything; the defaults make the shipped bundle."""

    clips: int = 1400
    latent_frames: int = 9
    seed: int = 0
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    detail: AutoencoderRecipe = field(
        default_factory=lambda: AutoencoderRecipe(steps=2000, batch=10, size=48, learning_rate=1.5e-3)
    )
    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)
    teacher: DiffusionRecipe = field(default_factory=lambda: DiffusionRecipe(steps=450))
    student: DiffusionRecipe = field(default_factory=lambda: DiffusionRecipe(steps=1100, learning_rate=6e-4))


def train_tiny(folder: Path, recipe: TinyRecipe) -> Checkpoint:
    """Run all stages; the finished student is left in `folder`/checkpoint and returned."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = 4 * recipe.latent_frames - 3
    targets, references, audio = _drawn(folder, recipe.clips, frames)
    masks = {
        "pixel": torch.from_numpy(mouth_mask(SIZE)),
        "latent": torch.from_numpy(latent_mask(SIZE)),
        "composite": torch.from_numpy(compositing_mask(SIZE)),
    }

    taehv = TAEHV(TINY_TAEHV)
    torch.manual_seed(recipe.seed)
    initialise(taehv)
    # Few large pictures first, then many small ones.
    for name, stage in (("autoencoder", recipe.autoencoder), ("detail", recipe.detail)):
        with _stage(folder / f"{name}.safetensors", taehv, name, stage.steps) as run:
            if run:
                train_autoencoder(taehv, [targets, references], masks["pixel"], stage, seed=recipe.seed, progress=run)
    round_to_bfloat16(taehv)

    latents = _latents(folder / "latents.safetensors", taehv, targets, references, audio, masks)
    config = STUDENTS["tiny"]
    text = torch.randn(config.text_len, config.text_dim, generator=torch.Generator().manual_seed(recipe.seed))
    torch.manual_seed(recipe.seed)
    model = CausalDiT(config)
    for name, train, diffusion in (
        ("teacher", train_teacher, recipe.teacher),
        ("student", train_student, recipe.student),
    ):
        with _stage(folder / f"{name}.safetensors", model, name, diffusion.steps) as run:
            if run:
                model.load_state_dict(
                    train(model, latents, text, diffusion, seed=recipe.seed, progress=run).state_dict()
                )

    with _stage(folder / "decoder.safetensors", taehv, "decoder", recipe.decoder.steps) as run:
        if run:
            train_decoder(
                taehv, targets, latents.target, masks["latent"], recipe.decoder, seed=recipe.seed, progress=run
            )
    round_to_bfloat16(taehv)
    round_to_bfloat16(model)
    checkpoint = Checkpoint(model.eval(), taehv, text, masks, MODEL)
    checkpoint.save(folder / "checkpoint")
    return checkpoint


def _drawn(folder: Path, clips: int, frames: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor]:
    """Targets and references uint8 [clips, frames, SIZE, SIZE, 3], features [clips, frames, A]; drawn on all cores."""
    paths = [folder / f"{name}-{clips}x{frames}.npy" for name in ("targets", "references", "audio")]
    if not all(path.exists() for path in paths):
        shape = (clips, frames, SIZE, SIZE, 3)
        targets, references = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        audio = np.empty((clips, frames, STUDENTS["tiny"].audio_dim), np.float32)
        mel = LogMel()
        jobs = [(index, frames) for index in range(clips)]
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            drawn = pool.imap(_draw, jobs, chunksize=8)
            for i, (target, reference, heard) in enumerate(tqdm(drawn, "drawing", clips, unit="clip")):
                targets[i], references[i] = target, reference
                trim = AUDIO_CONTEXT - LOOKBACK
                audio[i] = mel(torch.from_numpy(heard[trim:-trim])).numpy()
        arrays: tuple[NDArray[Any], ...] = (targets, references, audio)
        for path, array in zip(paths, arrays, strict=True):
            partial = path.with_suffix(".partial.npy")
            np.save(partial, array)
            partial.replace(path)
    targets, references, audio = (np.load(path, mmap_mode="r") for path in paths)
    return targets, references, torch.from_numpy(np.array(audio))


def _draw(job: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    index, frames = job
    cv2.setNumThreads(1)  # the processes are the threads
    clip = draw_clip(training_rng(index), frames, SIZE)
    return clip.target, clip.reference, clip.heard


def _latents(
    path: Path,
    taehv: TAEHV,
    targets: NDArray[np.uint8],
    references: NDArray[np.uint8],
    audio: Tensor,
    masks: dict[str, Tensor],
) -> Latents:
    if not path.exists():
        encoded: dict[str, list[Tensor]] = {"target": [], "masked": [], "reference": []}
        for target, reference in tqdm(zip(targets, references, strict=True), "encoding", len(targets), unit="clip"):
            encoded["target"].append(encode_clip(taehv, target).half())
            encoded["masked"].append(encode_clip(taehv, reference, masks["pixel"]).half())
            encoded["reference"].append(encode_clip(taehv, reference).half())
        partial = path.with_suffix(".partial")
        save_file({name: torch.stack(x) for name, x in encoded.items()}, partial)
        partial.replace(path)
    audio = torch.cat([audio[:, :1].expand(-1, 3, -1), audio], dim=1)
    return Latents(**load_file(path), audio=audio, mask=masks["latent"])


@contextmanager
def _stage(path: Path, model: torch.nn.Module, name: str, steps: int) -> Iterator[Callable[[float], None] | None]:
    """A stage's progress callback; its weights then go to `path`. None, and the weights loaded, if they are there."""
    if path.exists():
        model.load_state_dict(load_file(path))
        yield None
        return
    with tqdm(total=steps, desc=name, unit="step") as bar:
        recent: list[float] = []

        def progress(loss: float) -> None:
            recent.append(loss)
            if len(recent) % 20 == 0:
                bar.set_postfix_str(f"loss {np.mean(recent[-100:]):.4f}")
            bar.update()

        yield progress
    partial = path.with_suffix(".partial")
    save_file({key: x.contiguous() for key, x in model.state_dict().items()}, partial)
    partial.replace(path)
