"""What a student makes of a run of crops and its sound, exactly as a session does: with the ring, pass by pass."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from lipstream.backends.base import ChunkInput
from lipstream.session.reference import stack_crops
from lipstream_export.bundle import geometry
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import TAEHV
from lipstream_models.mel import SAMPLES_PER_FRAME
from lipstream_models.parts import StudentParts
from numpy.typing import NDArray
from torch import Tensor

from .footage import Run

Sound = NDArray[np.float32]


def frames_of(parts: StudentParts, run: Run) -> int:
    """Video frames of the whole chunks in `run`; a stream's first chunk has fewer."""
    config = parts.config
    chunk, missing = config.temporal * config.chunk_frames, config.temporal - 1
    return max(0, (len(run.crops) + missing) // chunk * chunk - missing)


def sound_window(parts: StudentParts, sound: Sound, first: int, frames: int) -> Sound:
    """Input of the audio encoder for `frames` frames from `first` on; silence where there is no sound."""
    assert parts.speech
    start = first * SAMPLES_PER_FRAME - parts.speech.lookback
    window = np.zeros(parts.speech.lookback + frames * SAMPLES_PER_FRAME + parts.speech.lookahead, np.float32)
    part = sound[max(start, 0) : max(start + len(window), 0)]
    window[max(-start, 0) :][: len(part)] = part
    return window


def generate(backend: TorchBackend, run: Run, sound: Sound, *, seed: int) -> Tensor:
    """Latents [C, F, h, w] of the whole chunks of `run`, one stream of its own."""
    parts = backend.parts
    config, shape = parts.config, geometry(parts.config)
    stream = backend.stepped(backend.open_steps())
    rng = np.random.default_rng(seed)
    noise = (config.latent_channels, config.chunk_frames, *config.latent_size)
    made, missing, first = [], config.temporal - 1, 0
    for number in range((frames_of(parts, run) + missing) // shape.video_frames):
        crops = run.crops[first : first + shape.video_frames - missing]
        chunk = ChunkInput(
            number=number,
            crops=stack_crops(shape, list(crops)),
            latents=None,
            samples=sound_window(parts, sound, run.start + first - missing, shape.video_frames),
            noises=[rng.standard_normal(noise, np.float32) for _ in config.t_list[:-1]],
            missing=missing,
        )
        made.append(torch.from_numpy(stream.denoise(chunk, lambda name: nullcontext())))
        stream.finish(lambda name: nullcontext())
        first, missing = first + len(crops), 0
    return torch.cat(made, dim=1)


@torch.inference_mode()
def decode(taehv: TAEHV, latents: Tensor) -> NDArray[np.uint8]:
    """Latents [C, F, h, w] of a stream -> pictures uint8 [4 F - 3, S, S, 3]."""
    height, width = (taehv.config.spatial * side for side in latents.shape[2:])
    memory = taehv.decoder_memory(1, height, width)
    pictures = []
    for latent in latents.transpose(0, 1):
        video, memory = taehv.decode(latent[None, None], memory)
        pictures.append((255 * video[0]).round().to(torch.uint8))
    return np.asarray(torch.cat(pictures)[3:].permute(0, 2, 3, 1).numpy(), np.uint8)
