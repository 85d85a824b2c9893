"""The cepstra that are SyncNet's input: what `python_speech_features.mfcc` computes with its defaults."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..media import RATE

COEFFICIENTS = 13
WINDOW, STEP = 400, 160  # samples: 25 ms every 10 ms, four per video frame
_FFT = 512
_FILTERS = 26
_LIFTER = 22
_PREEMPHASIS = 0.97
_FULL_SCALE = 32768.0
_TINY = float(np.finfo(float).eps)


def mfcc(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mel-frequency cepstral coefficients, float32 [frames, 13], one frame every 10 ms.

    Frames are not windowed, the last one is filled up with zeros, and the first coefficient is the log of the frame's
    energy.

    Args:
        audio: float32 [samples] at 16 kHz in -1..1; scaled to 16-bit integers, as SyncNet was trained.
    """
    signal = np.asarray(audio, np.float64) * _FULL_SCALE
    signal = np.append(signal[:1], signal[1:] - _PREEMPHASIS * signal[:-1])
    count = 1 + max(0, -(-(len(signal) - WINDOW) // STEP))
    padded = np.zeros((count - 1) * STEP + WINDOW)
    padded[: len(signal)] = signal[: len(padded)]
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::STEP]
    power = np.square(np.abs(np.fft.rfft(frames, _FFT))) / _FFT
    energy = np.maximum(power.sum(axis=1), _TINY)
    mel = power @ _filters().T
    cepstra = np.log(np.where(mel == 0, _TINY, mel)) @ _transform()
    cepstra[:, 0] = np.log(energy)
    return cepstra.astype(np.float32)


@cache
def _filters() -> NDArray[np.float64]:
    """Triangular filters [26, 257] between points equally spaced on the mel scale from 0 to 8000 Hz."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, _FILTERS + 2) / 2595) - 1)
    edges = np.floor((_FFT + 1) * hertz / RATE)
    bins = np.arange(_FFT // 2 + 1)
    left, middle, right = (edges[i : i + _FILTERS, None] for i in range(3))
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.asarray(np.where(bins < middle, rising, falling) * ((bins >= left) & (bins < right)))


@cache
def _transform() -> NDArray[np.float64]:
    """Orthonormal cosine transform (type 2) [26, 13], and the lifter that raises the higher coefficients."""
    n = np.arange(COEFFICIENTS)
    cosines = np.cos(np.pi * n * (2 * np.arange(_FILTERS)[:, None] + 1) / (2 * _FILTERS)) * np.sqrt(2 / _FILTERS)
    cosines[:, 0] /= np.sqrt(2)
    return np.asarray(cosines * (1 + _LIFTER / 2 * np.sin(np.pi * n / _LIFTER)))
