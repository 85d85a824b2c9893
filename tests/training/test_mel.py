"""Log-mel features: against NumPy's FFT, and a stream's against a whole file's."""

from __future__ import annotations

import numpy as np
import torch
from lipstream_training.models.mel import (
    FEATURES,
    HOP,
    LOOKAHEAD,
    LOOKBACK,
    MELS,
    SAMPLES_PER_FRAME,
    WINDOW,
    LogMel,
    mel_filters,
)


def samples(frames: int) -> torch.Tensor:
    return 0.2 * torch.randn(
        LOOKBACK + frames * SAMPLES_PER_FRAME + LOOKAHEAD, generator=torch.Generator().manual_seed(0)
    )


def test_equals_the_fft() -> None:
    x = samples(3).numpy().astype(np.float64)
    window = np.hanning(WINDOW + 1)[:-1]
    starts = range(0, len(x) - WINDOW + 1, HOP)
    power = np.abs([np.fft.rfft(x[s : s + WINDOW] * window) * 2 / window.sum() for s in starts]) ** 2
    mel = np.log10(power @ mel_filters().numpy().T + 1e-8) / 2 + 2.5
    per_frame = mel.reshape(-1, 4 * MELS)
    wanted = np.stack([per_frame[i : i + 3].ravel() for i in range(len(per_frame) - 2)])
    found = LogMel()(torch.from_numpy(x).float()).numpy()
    assert found.shape == (3, FEATURES)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_stream_hears_what_a_file_holds() -> None:
    x, mel = samples(11), LogMel()
    whole = mel(x)
    cut = 5 * SAMPLES_PER_FRAME
    parts = [mel(x[: LOOKBACK + cut + LOOKAHEAD]), mel(x[cut:])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    time = torch.arange(len(samples(1))) / 16000
    for hertz in (300.0, 1000.0, 4000.0):
        bands = LogMel()(torch.sin(2 * torch.pi * hertz * time))[0].reshape(-1, MELS)
        centre = (mel_filters() @ (torch.arange(WINDOW // 2 + 1).double() * 16000 / WINDOW))[bands.argmax(1)]
        assert (centre / hertz).log2().abs().max() < 0.25


def test_filters_average() -> None:
    filters = mel_filters()
    assert filters.shape == (MELS, WINDOW // 2 + 1)
    assert (filters >= 0).all()
    torch.testing.assert_close(filters.sum(1), torch.ones(MELS, dtype=torch.float64))
