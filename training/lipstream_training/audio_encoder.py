"""Trains the tiny student's audio encoder: it learns to tell the visemes of speech, and the mouth that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from lipstream_models import SpeechEncoder
from lipstream_models.mel import HOPS_PER_FRAME, PAST_FRAMES, SAMPLES_AFTER, SAMPLES_PER_FRAME
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .data.people3d.visemes import VISEMES, Manner, viseme_track
from .data.people3d.voices import PHONEME_LOOKAHEAD, Talk, Voice, silence, talk
from .data.speech import SAMPLE_RATE
from .optim import Average, Descent

MOUTH = ("opening", "width", "rounding", "teeth", "closure", "tongue")
"""What the mouth does, in the order of `Spoken.mouth`: attributes of `VisemeTrack`."""


@dataclass(frozen=True)
class AudioEncoderRecipe:
    """`steps` batches of `batch` stretches of `frames` frames, out of `voices` voices that speak `seconds` each.

    Attributes:
        noise: standard deviation of what is added to the mel spectrum, and to the features.
        classes: weight of the cross-entropy of the viseme, relative to the squared error of the mouth.
        average: decay of the moving average of the weights.
    """

    voices: int = 1500
    seconds: float = 8.0
    steps: int = 3600
    batch: int = 32
    frames: int = 40
    learning_rate: float = 2e-3
    noise: float = 0.05
    classes: float = 0.1
    average: float = 0.995


@dataclass(frozen=True)
class Spoken:
    """One voice, from `PAST_FRAMES` frames before its first frame to `SAMPLES_AFTER` samples after its last.

    Attributes:
        clean, recorded: float32 [samples] at 16 kHz, as in `Talk`.
        mouth: float32 [frames, 6], `MOUTH` of an average speaker who says it.
        visemes: int64 [frames], the viseme in the middle of each frame, an index of `VISEMES`.
    """

    clean: NDArray[np.float32]
    recorded: NDArray[np.float32]
    mouth: NDArray[np.float32]
    visemes: NDArray[np.int64]


def speak(index: int, seconds: float, *, unseen: bool = False) -> Spoken:
    """Voice `index` of those that encoders are trained on, or of the `unseen` ones; one seen in 25 is silent.

    Raises:
        MissingExtraError: a synthesiser is not installed.
    """
    rng = np.random.default_rng([8 if unseen else 2, index])
    frames = round(seconds * 25)
    samples = (PAST_FRAMES + frames) * SAMPLES_PER_FRAME + SAMPLES_AFTER
    length = samples / SAMPLE_RATE + PHONEME_LOOKAHEAD
    silent = not unseen and rng.random() < 0.04
    said = silence(length, rng) if silent else talk(length, rng, _voice(rng, unseen))
    track = viseme_track(said.segments, PAST_FRAMES + frames, Manner())[PAST_FRAMES:]
    mouth = np.stack([getattr(track, name) for name in MOUTH], axis=1)
    return Spoken(said.clean[:samples], said.recorded[:samples], mouth, _visemes(said, frames))


def _voice(rng: np.random.Generator, unseen: bool) -> Voice:
    while (voice := Voice.random(rng)).unseen != unseen:
        pass
    return voice


def _visemes(said: Talk, frames: int) -> NDArray[np.int64]:
    middle = (PAST_FRAMES + np.arange(frames) + 0.5) * SAMPLES_PER_FRAME / SAMPLE_RATE
    found = np.full(frames, VISEMES.index("rest"))
    for segment in said.segments:
        found[(middle >= segment.start) & (middle < segment.end)] = VISEMES.index(segment.viseme)
    return found


def train_audio_encoder(
    model: SpeechEncoder,
    voices: Sequence[Spoken],
    recipe: AudioEncoderRecipe,
    *,
    seed: int,
    progress: Callable[[float], None],
) -> SpeechEncoder:
    """Train `model` on the clean and the recorded sound of voices of one length.

    A linear layer that is dropped afterwards reads the mouth, standardised, and the viseme from the features.
    """
    torch.manual_seed(seed)
    spectra = torch.stack([_spectra(model, voice) for voice in voices])  # [voices, 2, bands, hops]
    mouth = torch.from_numpy(np.stack([voice.mouth for voice in voices]))
    visemes = torch.from_numpy(np.stack([voice.visemes for voice in voices]))
    wanted = (mouth - mouth.mean((0, 1))) / mouth.std((0, 1)).clamp_min(1e-3)
    read = nn.Linear(model.features, len(MOUTH) + len(VISEMES))
    descent, average = Descent([model, read], recipe.steps, recipe.learning_rate), Average(model, recipe.average)
    frames = min(recipe.frames, mouth.shape[1])
    hops = HOPS_PER_FRAME * (frames - mouth.shape[1]) + spectra.shape[3]  # of a stretch of `frames`
    for _ in range(recipe.steps):
        rows = torch.randint(len(voices), (recipe.batch,))
        sounds = torch.randint(2, (recipe.batch,))
        starts = torch.randint(mouth.shape[1] - frames + 1, (recipe.batch,))
        begin = HOPS_PER_FRAME * starts[:, None] + torch.arange(hops)
        x = spectra[rows[:, None], sounds[:, None], :, begin].transpose(1, 2).float()
        x = _masked(x + recipe.noise * torch.randn_like(x))
        hidden = model.encode(x)
        found = read(hidden + recipe.noise * torch.randn_like(hidden))
        at = rows[:, None], starts[:, None] + torch.arange(frames)
        loss = F.mse_loss(found[..., : len(MOUTH)], wanted[at])
        classes = F.cross_entropy(found[..., len(MOUTH) :].flatten(0, 1), visemes[at].flatten())
        descent.step(loss + recipe.classes * classes)
        average.update()
        progress(loss.item())
    average.apply()
    return model.eval()


@torch.no_grad()
def _spectra(model: SpeechEncoder, voice: Spoken) -> Tensor:
    """Spectra float16 [2, bands, hops] of the sounds of a voice, from the first frame's context on."""
    first = PAST_FRAMES * SAMPLES_PER_FRAME - model.lookback
    end = (PAST_FRAMES + len(voice.mouth)) * SAMPLES_PER_FRAME + model.lookahead
    sounds = np.stack([voice.clean[first:end], voice.recorded[first:end]])
    return cast(Tensor, model.mel(torch.from_numpy(sounds))).half()


def _masked(spectra: Tensor) -> Tensor:
    """Up to a fifth of the bands replaced by the mean, in half of the rows of [rows, bands, hops] (SpecAugment)."""
    rows, bands, _ = spectra.shape
    width = torch.rand(rows, 1) * 0.2 * bands * (torch.rand(rows, 1) < 0.5)
    first = torch.rand(rows, 1) * (bands - width)
    band = torch.arange(bands)
    hidden = (band >= first) & (band < first + width)
    return torch.where(hidden[..., None], spectra.mean((1, 2), keepdim=True), spectra)
