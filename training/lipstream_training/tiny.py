"""The tiny student from nothing: draw people, fit the codec, train the ear, the student and the decoder.

Each stage is left in the output folder when it is done and found there by the next run; the longest, the student, goes
on where a run before was cut off.
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
from lipstream_models import STUDENTS, TAEHV, CausalDiT, SpeechEncoder
from lipstream_models.checkpoint import Checkpoint, round_to_bfloat16
from lipstream_models.config import TINY_TAEHV
from lipstream_models.mel import LOOKAHEAD, LOOKBACK
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from .audio_encoder import HearingRecipe, speak, train_hearing
from .codec import DecoderRecipe, encode_clip, fit_codec, train_decoder
from .data.clips import PAST, draw_clip, training_rng
from .data.mask import compositing_mask, latent_mask, mouth_mask
from .data.mouth import SAMPLES_PER_FRAME
from .diffusion import Latents, StudentRecipe, roll_out, start_as_identity, train_student

CONFIG = STUDENTS["tiny"]
SIZE = CONFIG.crop_size[0]
MODEL = {
    "name": "tiny",
    "licence": "Apache-2.0",
    "description": "Lip Forcing's architecture at toy widths, trained on drawn faces and synthetic speech.",
}


@dataclass(frozen=True)
class TinyRecipe:
    """How much of everything; the defaults make the shipped bundle."""

    clips: int = 2400
    latent_frames: int = 9
    rollouts: int = 320
    seed: int = 0
    hearing: HearingRecipe = field(default_factory=HearingRecipe)
    student: StudentRecipe = field(default_factory=lambda: StudentRecipe(steps=2400))
    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)


@dataclass(frozen=True)
class Drawn:
    """Drawn clips: `target` and `reference` uint8 [N, V, S, S, 3], `identity` uint8 [N, S, S, 3], `heard` float32
    [N, samples] as `SpeechEncoder` takes them, `mouth` float32 [N, V, 4]."""

    target: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    identity: NDArray[np.uint8]
    heard: NDArray[np.float32]
    mouth: NDArray[np.float32]


def train_tiny(folder: Path, recipe: TinyRecipe) -> Checkpoint:
    """Run all stages; the finished student is left in `folder`/checkpoint and returned."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _drawn(folder, recipe)
    masks = {
        "pixel": torch.from_numpy(mouth_mask(SIZE)),
        "latent": torch.from_numpy(latent_mask(SIZE, CONFIG.spatial)),
        "composite": torch.from_numpy(compositing_mask(SIZE)),
    }

    speech = SpeechEncoder()
    with _stage(folder / "hearing.safetensors", speech, "hearing", recipe.hearing.steps) as run:
        if run:
            heard, mouth = _voices(recipe.hearing)
            train_hearing(speech, heard, mouth, recipe.hearing, seed=recipe.seed, progress=run)
    round_to_bfloat16(speech)

    torch.manual_seed(recipe.seed)
    taehv = TAEHV(TINY_TAEHV)
    fit_codec(taehv, drawn.target, masks["pixel"], seed=recipe.seed)
    round_to_bfloat16(taehv)
    data = _latents(folder / "latents.safetensors", taehv, speech, drawn, masks)

    text = torch.randn(CONFIG.text_len, CONFIG.text_dim, generator=torch.Generator().manual_seed(recipe.seed))
    torch.manual_seed(recipe.seed)
    model = CausalDiT(CONFIG)
    start_as_identity(model)
    with _stage(folder / "student.safetensors", model, "student", recipe.student.steps) as run:
        if run:
            partial = folder / "student.partial.pt"
            trained = train_student(model, data, text, recipe.student, seed=recipe.seed, progress=run, partial=partial)
            model.load_state_dict(trained.state_dict())
    round_to_bfloat16(model)

    with _stage(folder / "decoder.safetensors", taehv, "decoder", recipe.decoder.steps) as run:
        if run:
            rows = torch.arange(min(recipe.rollouts, len(data.target)))
            batches = tqdm(torch.split(rows, 16), "rollouts", unit="batch")
            rollouts = torch.cat([roll_out(model, data, text, batch, seed=int(batch[0])) for batch in batches])
            train_decoder(
                taehv, drawn.target, data.target[rows], rollouts, recipe.decoder, seed=recipe.seed, progress=run
            )
    round_to_bfloat16(taehv)
    checkpoint = Checkpoint(model.eval(), taehv, speech, text, masks, MODEL)
    checkpoint.save(folder / "checkpoint")
    return checkpoint


def _drawn(folder: Path, recipe: TinyRecipe) -> Drawn:
    """The clips, drawn on all cores."""
    clips, frames = recipe.clips, CONFIG.temporal * (recipe.latent_frames - 1) + 1
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "target": ((frames, SIZE, SIZE, 3), np.uint8),
        "reference": ((frames, SIZE, SIZE, 3), np.uint8),
        "identity": ((SIZE, SIZE, 3), np.uint8),
        "heard": ((LOOKBACK + frames * SAMPLES_PER_FRAME + LOOKAHEAD,), np.float32),
        "mouth": ((frames, 4), np.float32),
    }
    paths = {name: folder / f"{name}-{clips}x{frames}.npy" for name in shapes}
    if not all(path.exists() for path in paths.values()):
        arrays: dict[str, NDArray[Any]] = {name: np.empty((clips, *s), dtype) for name, (s, dtype) in shapes.items()}
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            drawn = pool.imap(_draw, [(index, frames) for index in range(clips)], chunksize=8)
            for i, clip in enumerate(tqdm(drawn, "drawing", clips, unit="clip")):
                for name, array in clip.items():
                    arrays[name][i] = array
        for name, path in paths.items():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, arrays[name])
            partial.replace(path)
    return Drawn(**{name: np.load(path, mmap_mode="r") for name, path in paths.items()})


def _draw(job: tuple[int, int]) -> dict[str, NDArray[Any]]:
    index, frames = job
    cv2.setNumThreads(1)  # the processes are the threads
    clip = draw_clip(training_rng(index), frames, SIZE, CONFIG.crop_box)
    first = PAST * SAMPLES_PER_FRAME
    return {
        "target": clip.target,
        "reference": clip.reference,
        "identity": clip.identity,
        "heard": clip.heard[first - LOOKBACK : first + frames * SAMPLES_PER_FRAME + LOOKAHEAD],
        "mouth": clip.mouth.stacked(),
    }


def _voices(recipe: HearingRecipe) -> tuple[Tensor, Tensor]:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        jobs = [(index, recipe.seconds) for index in range(recipe.voices)]
        spoken = list(tqdm(pool.imap(_speak, jobs, chunksize=8), "speaking", recipe.voices, unit="voice"))
    heard, mouth = (torch.from_numpy(np.stack(x)) for x in zip(*spoken, strict=True))
    return heard, mouth


def _speak(job: tuple[int, float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return speak(*job)


def _latents(path: Path, taehv: TAEHV, speech: SpeechEncoder, drawn: Drawn, masks: dict[str, Tensor]) -> Latents:
    if not path.exists():
        encoded: dict[str, list[Tensor]] = {"target": [], "masked": [], "first": []}
        clips = zip(drawn.target, drawn.reference, drawn.identity, strict=True)
        for target, reference, identity in tqdm(clips, "encoding", len(drawn.target), unit="clip"):
            encoded["target"].append(encode_clip(taehv, target).half())
            encoded["masked"].append(encode_clip(taehv, reference, masks["pixel"]).half())
            encoded["first"].append(encode_clip(taehv, identity[None]).half())
        tensors = {name: torch.stack(x) for name, x in encoded.items()}
        with torch.inference_mode():
            tensors["audio"] = torch.cat(
                [speech(torch.from_numpy(np.array(part))) for part in np.array_split(drawn.heard, 32)]
            )
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(path)
    tensors = load_file(path)
    mouth = torch.from_numpy(np.array(drawn.mouth))
    audio, mouth = (torch.cat([x[:, :1].expand(-1, 3, -1), x], dim=1) for x in (tensors.pop("audio"), mouth))
    return Latents(**tensors, sequence=tensors["masked"], audio=audio, mouth=mouth, mask=masks["latent"])


@contextmanager
def _stage(path: Path, model: nn.Module, name: str, steps: int) -> Iterator[Callable[[float], None] | None]:
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
