"""Tunes the student to one person by the loss that it was trained with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from lipstream_models import TAEHV, CausalDiT
from lipstream_models.condition import fill_first_latent_frame
from lipstream_models.constants import FOLDED, restore_times
from lipstream_models.layers import round_to_bfloat16
from lipstream_models.parts import StudentParts

from ..codec import encode_clip, linear_decoder
from ..diffusion import Latents, StudentRecipe, train_student
from ..distil.parallel import adapt, merged
from .footage import Run
from .stream import Sound, sound_window

LARGE = 100_000_000
"""Parameters from which a student gets adapters of rank `RANK`; a smaller one is trained as a whole."""
RANK = 16


def latents_of(parts: StudentParts, clips: list[Run], sound: Sound) -> Latents:
    """`clips` as the student is trained on them; the first frame of one clip is that of the condition of the next."""
    encoder, pixel = parts.codec("encoder"), parts.masks["pixel"]
    assert encoder
    assert parts.speech
    target = torch.stack([encode_clip(encoder, clip.crops) for clip in clips])
    masked = torch.stack([encode_clip(encoder, clip.crops, pixel) for clip in clips])
    frames = len(clips[0].crops)
    with torch.inference_mode():
        features = [
            parts.speech(torch.from_numpy(sound_window(parts, sound, clip.start, frames))).reshape(1, frames, -1)
            for clip in clips
        ]
    audio = fill_first_latent_frame(torch.cat(features).clone(), parts.config.temporal)
    return Latents(
        target=target,
        first=target[:, :, :1].roll(1, 0),
        masked=masked,
        sequence=masked if parts.config.sequence == "masked" else target,
        audio=audio,
        mouth=torch.zeros(*audio.shape[:2], 4),
        mask=parts.masks["latent"],
    )


def tune_student(
    parts: StudentParts, data: Latents, recipe: StudentRecipe, *, seed: int, progress: Callable[[float], None]
) -> CausalDiT:
    """A copy of the student, trained on `data` and rounded to bfloat16.

    What acts through the constants of a bundle alone (times, prompt) stays as it is.
    """
    assert parts.student
    constants = parts.constants()
    model = copy.deepcopy(parts.student).float()
    restore_times(model, constants)
    model.requires_grad_(True)
    if sum(p.numel() for p in model.parameters()) > LARGE:
        adapt(model, RANK, RANK)
    for name, parameter in model.named_parameters():
        if FOLDED.search(name):
            parameter.requires_grad_(False)
    keys, values = (
        [constants[f"text_{kind}.{i}"].float().transpose(0, 1)[None] for i in range(parts.config.num_layers)]
        for kind in "kv"
    )
    encoder = parts.codec("encoder")
    linear = isinstance(encoder, TAEHV) and encoder.config.encoder == "linear"
    decode = linear_decoder(encoder) if linear and isinstance(encoder, TAEHV) else None
    train_student(
        model, data, list(zip(keys, values, strict=True)), recipe, seed=seed, progress=progress, decode=decode
    )
    trained = {name: x for name, x in merged(model).items() if not FOLDED.search(name)}
    tuned = copy.deepcopy(parts.student)
    tuned.load_state_dict(tuned.state_dict() | trained)
    round_to_bfloat16(tuned)
    return tuned.eval().requires_grad_(False)
