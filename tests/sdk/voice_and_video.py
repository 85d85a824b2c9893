"""Voices and files for the tests of the SDK."""

from __future__ import annotations

import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.media import VideoWriter
from numpy.typing import NDArray


def voice(seconds: float, rate: int = 16_000, seed: int = 0) -> NDArray[np.float32]:
    """Similar to speech: a buzz of changing pitch in syllables. Float32 [round(seconds * rate)] in -0.5..0.5."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    buzz = sum(np.sin(k * phase) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * t + rng.uniform(0, 6)) + 0.3, 0, 1)
    return (0.2 * buzz * syllables + 0.002 * rng.standard_normal(len(t))).astype(np.float32)


def write_wav(path: Path, samples: NDArray[np.float32], rate: int = 16_000) -> Path:
    """16-bit WAV of float32 [n] or [n, channels]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_video(
    path: Path, frames: Iterable[NDArray[np.uint8]], sound: NDArray[np.float32] | None = None, **options: Any
) -> Path:
    """A file of `frames`, with `sound` (float32, 16 kHz) if given. Options as `VideoWriter`'s."""
    frames = list(frames)
    height, width = frames[0].shape[:2]
    rate = None if sound is None else 16_000
    with VideoWriter(path, width, height, audio_rate=rate, preset="ultrafast", **options) as writer:
        if sound is not None:
            writer.write_audio(sound)
        for frame in frames:
            writer.write(frame)
    return path
