"""Trains the tiny student from scratch: people and voices, the codec, the audio encoder, the student and the decoder.

Each stage is saved in the output folder when it is done and reused by the next run; the longest, the student, continues
where an interrupted run stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from lipstream.atomic import new_file
from lipstream.errors import ConfigError
from lipstream_evaluate.processes import in_processes
from lipstream_models import STUDENTS, TAEHV, CausalDiT, SpeechEncoder
from lipstream_models.condition import fill_first_latent_frame
from lipstream_models.config import TINY_TAEHV
from lipstream_models.layers import round_to_bfloat16
from lipstream_models.parts import StudentParts
from lipstream_models.unfold import unfolded
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from .audio_encoder import AudioEncoderRecipe, Spoken, speak, train_audio_encoder
from .clip_set import ClipSet, make_clips
from .codec import DecoderRecipe, encode_clip, fit_codec, linear_decoder, train_decoder
from .data.mask import compositing_mask, latent_mask, mouth_mask
from .diffusion import Latents, StudentRecipe, generate_clips, start_as_identity, train_student

CONFIG = STUDENTS["tiny"]
SIZE = CONFIG.crop_size[0]
MODEL = {
    "name": "tiny",
    "licence": "Apache-2.0",
    "description": "Lip Forcing's architecture at toy widths, trained on 3D and drawn people and synthetic speech.",
}


@dataclass(frozen=True)
class TinyRecipe:
    """Sizes of data and training. `drawn`: share of drawn people in the clips; `first`: number of the first clip."""

    clips: int = 1800
    first: int = 0
    drawn: float = 0.35
    latent_frames: int = 9
    rollouts: int = 320
    seed: int = 0
    audio_encoder: AudioEncoderRecipe = field(default_factory=AudioEncoderRecipe)
    student: StudentRecipe = field(default_factory=lambda: StudentRecipe(steps=2700, sharp=0.25))
    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)


def train_tiny(folder: Path, recipe: TinyRecipe, start: StudentParts | None = None) -> StudentParts:
    """Run all stages; write the student to `folder`/checkpoint and return it.

    Args:
        start: a student of this shape to train on, with its codec and audio encoder; None: train all of them.

    Raises:
        ConfigError: `start` has another shape.
    """
    if start is not None:
        _check_start(start)
    folder.mkdir(parents=True, exist_ok=True)
    frames = CONFIG.temporal * (recipe.latent_frames - 1) + 1
    clips = make_clips(folder, CONFIG, recipe.clips, frames, recipe.drawn, first=recipe.first)
    masks = {
        "pixel": torch.from_numpy(mouth_mask(SIZE)),
        "latent": torch.from_numpy(latent_mask(SIZE, CONFIG.spatial)),
        "composite": torch.from_numpy(compositing_mask(SIZE)),
    }
    parts = _from(start, masks) if start else _untrained(folder, recipe, clips, masks)
    model, taehv, speech, text = parts.student, parts.taehv, parts.speech, parts.text
    assert model
    assert taehv
    assert isinstance(speech, SpeechEncoder)
    assert text is not None
    data = _latents(folder / "latents.safetensors", taehv, speech, clips, masks)
    with _stage(folder / "student.safetensors", model, "student", recipe.student.steps) as run:
        if run:
            partial, decode = folder / "student.partial.pt", linear_decoder(taehv)
            train_student(
                model, data, text, recipe.student, seed=recipe.seed, progress=run, partial=partial, decode=decode
            )
    round_to_bfloat16(model)

    with _stage(folder / "decoder.safetensors", taehv, "decoder", recipe.decoder.steps) as run:
        if run:
            rows = torch.arange(min(recipe.rollouts, len(data.target)))
            batches = tqdm(torch.split(rows, 16), "rollouts", unit="batch")
            rollouts = torch.cat([generate_clips(model, data, text, batch, seed=int(batch[0])) for batch in batches])
            train_decoder(
                taehv, clips.target, data.target[rows], rollouts, recipe.decoder, seed=recipe.seed, progress=run
            )
    round_to_bfloat16(taehv)
    model.eval()
    parts.save(folder / "checkpoint")
    return parts


def _untrained(folder: Path, recipe: TinyRecipe, clips: ClipSet, masks: dict[str, Tensor]) -> StudentParts:
    """Codec and audio encoder trained, the student with random weights."""
    speech = SpeechEncoder()
    with _stage(folder / "audio_encoder.safetensors", speech, "audio encoder", recipe.audio_encoder.steps) as run:
        if run:
            voices = _voices(recipe.audio_encoder)
            train_audio_encoder(speech, voices, recipe.audio_encoder, seed=recipe.seed, progress=run)
    round_to_bfloat16(speech)
    torch.manual_seed(recipe.seed)
    taehv = TAEHV(TINY_TAEHV)
    with _stage(folder / "codec.safetensors", taehv, "codec", 1) as run:
        if run:
            fit_codec(taehv, clips.target, masks["pixel"], seed=recipe.seed)
            round_to_bfloat16(taehv)
            run(float("nan"))
    text = torch.randn(CONFIG.text_len, CONFIG.text_dim, generator=torch.Generator().manual_seed(recipe.seed))
    torch.manual_seed(recipe.seed)
    model = CausalDiT(CONFIG)
    start_as_identity(model)
    return StudentParts(CONFIG, model, text, taehv, speech, masks, MODEL)


def _check_start(start: StudentParts) -> None:
    taehv = start.taehv.config if start.taehv else None
    found = start.config, taehv, type(start.speech)
    if start.student is None or found != (CONFIG, TINY_TAEHV, SpeechEncoder):
        raise ConfigError(
            f"{start.model.get('name', 'the student')} has another shape",
            expected="sizes, codec and audio encoder of tiny",
        )


def _from(start: StudentParts, masks: dict[str, Tensor]) -> StudentParts:
    """A copy of `start` with all weights, to be trained."""
    parts = copy.deepcopy(replace(unfolded(start), masks=masks, model=MODEL, identity=None))
    assert parts.student
    assert parts.taehv
    parts.student.requires_grad_(True)
    parts.taehv.decoder.requires_grad_(True)
    return parts


def _voices(recipe: AudioEncoderRecipe) -> list[Spoken]:
    jobs = [(index, recipe.seconds) for index in range(recipe.voices)]
    return list(tqdm(in_processes(_speak, jobs), "speaking", recipe.voices, unit="voice"))


def _speak(job: tuple[int, float]) -> Spoken:
    return speak(*job)


def _latents(path: Path, taehv: TAEHV, speech: SpeechEncoder, clips: ClipSet, masks: dict[str, Tensor]) -> Latents:
    if not path.exists():
        encoded: dict[str, list[Tensor]] = {"target": [], "masked": [], "first": []}
        pictures = zip(clips.target, clips.reference, clips.identity, strict=True)
        for target, reference, identity in tqdm(pictures, "encoding", len(clips.target), unit="clip"):
            encoded["target"].append(encode_clip(taehv, target).half())
            encoded["masked"].append(encode_clip(taehv, reference, masks["pixel"]).half())
            encoded["first"].append(encode_clip(taehv, identity[None]).half())
        tensors = {name: torch.stack(x) for name, x in encoded.items()}
        with torch.inference_mode():
            tensors["audio"] = torch.cat(
                [
                    speech(torch.from_numpy(np.array(part)))
                    for part in np.array_split(clips.audio, min(32, len(clips.audio)))
                ]
            )
        with new_file(path) as partial:
            save_file(tensors, partial)
    tensors = load_file(path)
    mouth = torch.from_numpy(np.array(clips.mouth))
    audio, mouth = (fill_first_latent_frame(x) for x in (tensors.pop("audio"), mouth))
    return Latents(**tensors, sequence=tensors["masked"], audio=audio, mouth=mouth, mask=masks["latent"])


@contextmanager
def _stage(path: Path, model: nn.Module, name: str, steps: int) -> Iterator[Callable[[float], None] | None]:
    """Yield the progress callback of a stage, then save its weights to `path`. If they exist, load them, yield None."""
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
    with new_file(path) as partial:
        save_file({key: x.contiguous() for key, x in model.state_dict().items()}, partial)
