"""Tunes the student to one person by the loss that it was trained with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from lipstream_models import TAEHV
from lipstream_models.condition import fill_first_latent_frame
from lipstream_models.constants import FOLDED
from lipstream_models.layers import round_to_bfloat16
from lipstream_models.parts import StudentParts
from lipstream_models.unfold import unfolded

from ..codec import encode_clip, linear_decoder
from ..diffusion import Latents, StudentRecipe, train_student
from ..distil.parallel import adapt, merged
from .footage import Run
from .stream import Sound, sound_window

LARGE = 100_000_000
"""Parameters from which a student gets adapters of rank `RANK`; a smaller one is trained as a whole."""
RANK = 16


def latents_of(parts: StudentParts, clips: list[Run], sound: Sound) -> Latents:
    """`clips` as the student is trained on them.

    The frame that shows the person is `parts.identity`; without it, the first frame of the clip before.
    """
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
        first=target[:, :, :1].roll(1, 0) if parts.identity is None else parts.identity.repeat(len(clips), 1, 1, 1, 1),
        masked=masked,
        sequence=masked if parts.config.sequence == "masked" else target,
        audio=audio,
        mouth=torch.zeros(*audio.shape[:2], 4),
        mask=parts.masks["latent"],
    )


def tune_student(
    parts: StudentParts, data: Latents, recipe: StudentRecipe, *, seed: int, progress: Callable[[float], None]
) -> StudentParts:
    """`parts` with a copy of the student that is trained on `data` and rounded to bfloat16.

    Its constants, what times and prompt alone determine, stay as they are.
    """
    whole = unfolded(parts)
    assert whole.student
    assert whole.text is not None
    model = copy.deepcopy(whole.student).float().requires_grad_(True)
    if sum(p.numel() for p in model.parameters()) > LARGE:
        adapt(model, RANK, RANK)
    for name, parameter in model.named_parameters():
        if FOLDED.search(name):
            parameter.requires_grad_(False)
    encoder = parts.codec("encoder")
    linear = isinstance(encoder, TAEHV) and encoder.config.encoder == "linear"
    decode = linear_decoder(encoder) if linear and isinstance(encoder, TAEHV) else None
    train_student(model, data, whole.text, recipe, seed=seed, progress=progress, decode=decode)
    tuned = copy.deepcopy(parts.student)
    assert tuned
    trained = {name: x for name, x in merged(model).items() if not FOLDED.search(name)}
    tuned.load_state_dict(tuned.state_dict() | trained)
    round_to_bfloat16(tuned)
    return replace(parts, student=tuned.eval().requires_grad_(False), shared=parts.with_constants().shared)
