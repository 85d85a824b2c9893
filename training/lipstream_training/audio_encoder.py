"""Trains the tiny student's audio encoder: it learns to predict the drawing rule's mouth from speech."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lipstream_models import SpeechEncoder
from lipstream_models.mel import LOOKAHEAD, LOOKBACK, PAST_FRAMES, SAMPLES_PER_FRAME
from lipstream_models.speech import WIDTHS
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .data.mouth import mouth_track
from .data.speech import degrade, speech
from .optim import Descent


@dataclass(frozen=True)
class AudioEncoderRecipe:
    """`steps` batches of `batch` frames, out of `voices` voices that speak `seconds` each."""

    voices: int = 700
    seconds: float = 8.0
    steps: int = 3000
    batch: int = 512
    learning_rate: float = 2e-3
    noise: float = 0.05


def speak(index: int, seconds: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Voice `index`: recorded samples float32 [LOOKBACK + 640 n + LOOKAHEAD], and the mouth float32 [n, 4]."""
    rng = np.random.default_rng([2, index])
    said = speech(seconds, rng)
    recorded = said.recorded if rng.random() < 0.7 else degrade(said.clean, rng)
    start = PAST_FRAMES * SAMPLES_PER_FRAME - LOOKBACK
    frames = (len(recorded) - start - LOOKBACK - LOOKAHEAD) // SAMPLES_PER_FRAME
    track = mouth_track(said.clean, PAST_FRAMES + frames)[PAST_FRAMES:]
    window = recorded[start : start + LOOKBACK + frames * SAMPLES_PER_FRAME + LOOKAHEAD]
    return window, track.stacked()


def train_audio_encoder(
    model: SpeechEncoder,
    audio: Tensor,
    mouth: Tensor,
    recipe: AudioEncoderRecipe,
    *,
    seed: int,
    progress: Callable[[float], None],
) -> SpeechEncoder:
    """Train `model` on samples [voices, n] and mouths [voices, frames, 4]."""
    torch.manual_seed(seed)
    with torch.no_grad():
        features = torch.cat([model.mel(samples[None])[0] for samples in audio])
    wanted = mouth.flatten(0, 1)
    read = nn.Linear(WIDTHS[-1], wanted.shape[1])
    descent = Descent([model, read], recipe.steps, recipe.learning_rate)
    for _ in range(recipe.steps):
        rows = torch.randint(len(wanted), (recipe.batch,))
        x = features[rows]
        hidden = model.layers(x + recipe.noise * torch.randn_like(x))
        loss = F.mse_loss(read(hidden + recipe.noise * torch.randn_like(hidden)), wanted[rows])
        descent.step(loss)
        progress(loss.item())
    return model.eval()
