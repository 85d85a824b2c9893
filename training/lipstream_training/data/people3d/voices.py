"""Who speaks: more than 700 timbres of two synthesisers, and what they say, with the visemes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..sentences import sentence
from ..speech import ENGLISH, OTHERS, SAMPLE_RATE, TIMBRES, degrade, espeak_phonemes, hush, level
from .natural import natural
from .visemes import Segment, segments

SYNTHETIC = tuple(f"{voice}+{timbre}" for voice, timbre in product(ENGLISH + OTHERS, TIMBRES))
"""The voices of eSpeak NG: languages and timbres."""

PHONEME_LOOKAHEAD = 0.3
"""Seconds after a frame that its mouth may depend on."""
_UNSEEN_TIMBRES = ("f3", "klatt3", "Lee", "grandpa", "linda")
_UNSEEN_FORMANTS = ((0.80, 0.83), (0.92, 0.95), (1.06, 1.10))


@dataclass(frozen=True)
class Voice:
    """One timbre.

    Attributes:
        synthetic: a voice of eSpeak NG; None for the natural one.
        speed: factor. pitch, formants: factors of the natural voice. espeak_pitch, espeak_range: 0..99.
        whisper: of the natural voice.
    """

    synthetic: str | None
    speed: float
    pitch: float = 1.0
    formants: float = 1.0
    espeak_pitch: int = 50
    espeak_range: int = 50
    whisper: bool = False

    @classmethod
    def random(cls, rng: np.random.Generator, natural_share: float = 0.65) -> Voice:
        speed = rng.uniform(0.8, 1.35)
        if rng.random() < natural_share:
            formants = math.exp(rng.uniform(-0.28, 0.18))
            pitch = formants * math.exp(rng.normal(0, 0.12)) * (0.75 if formants < 0.88 else 1.0)
            return cls(None, speed, pitch, formants, whisper=rng.random() < 0.04)
        languages = ENGLISH if rng.random() < 0.7 else OTHERS
        voice = f"{languages[rng.integers(len(languages))]}+{TIMBRES[rng.integers(len(TIMBRES))]}"
        return cls(voice, speed, espeak_pitch=int(rng.integers(15, 85)), espeak_range=int(rng.integers(20, 95)))

    @property
    def unseen(self) -> bool:
        """Whether audio encoders are measured on it and never trained on it.

        These are five timbres of eSpeak NG, and three ranges of the formants of the natural voice.
        """
        if self.synthetic is None:
            return any(low <= self.formants < high for low, high in _UNSEEN_FORMANTS)
        return self.synthetic.split("+")[1] in _UNSEEN_TIMBRES

    def say(self, text: str, rng: np.random.Generator) -> tuple[NDArray[np.float64], list[Segment]]:
        """`text` as sound, float64 [n] at 16 kHz, and its visemes.

        Raises:
            MissingExtraError: the synthesiser is not installed.
        """
        if self.synthetic is None:
            sound, phonemes = natural(
                text, rng, speed=self.speed, pitch=self.pitch, formants=self.formants, whisper=self.whisper
            )
            return sound, segments(phonemes, misaki=True)
        sound, phonemes = espeak_phonemes(
            text, self.synthetic, round(165 * self.speed), self.espeak_pitch, self.espeak_range
        )
        return sound, segments(phonemes, misaki=False)


@dataclass(frozen=True)
class Talk:
    """What one person says in a clip.

    Attributes:
        clean: float32 [n] at 16 kHz; digital silence between phrases.
        recorded: float32 [n], `clean` through a room, a microphone and noise.
        segments: its visemes, in seconds from sample 0.
    """

    clean: NDArray[np.float32]
    recorded: NDArray[np.float32]
    segments: list[Segment]


def silence(seconds: float, rng: np.random.Generator) -> Talk:
    """Nobody speaks: only the noise of a room."""
    samples = round(seconds * SAMPLE_RATE)
    return Talk(np.zeros(samples, np.float32), hush(samples, rng), [Segment("rest", -1.0, seconds + 1.0)])


def talk(seconds: float, rng: np.random.Generator, voice: Voice | None = None) -> Talk:
    """Random sentences of `voice`, exactly `seconds` long; by default of a random one, one time in 25 only noise.

    Raises:
        MissingExtraError: a synthesiser is not installed.
    """
    if voice is None and rng.random() < 0.04:
        return silence(seconds, rng)
    samples = round(seconds * SAMPLE_RATE)
    voice = voice or Voice.random(rng)
    first = int(rng.integers(0, SAMPLE_RATE))  # clips begin in the middle of a sentence
    sounds: list[NDArray[np.float64]] = []
    spoken: list[Segment] = []
    length = 0
    while length < first + samples:
        sound, visemes = voice.say(" ".join(sentence(rng) for _ in range(2)), rng)
        start = (length - first) / SAMPLE_RATE
        spoken += [segment.later(start) for segment in visemes]
        pause = round(rng.uniform(0.05, 1.3) * SAMPLE_RATE) if rng.random() < 0.45 else 0
        sounds += [sound * level(sound, rng), np.zeros(pause)]
        length += len(sound)
        if pause:
            spoken.append(Segment("rest", (length - first) / SAMPLE_RATE, (length + pause - first) / SAMPLE_RATE))
        length += pause
    clean = np.clip(np.concatenate(sounds)[first : first + samples], -1, 1).astype(np.float32)
    return Talk(clean, degrade(clean, rng), spoken)
