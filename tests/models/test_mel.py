"""Log-mel spectra and the audio encoders on them: against NumPy's FFT, and a stream's against a whole file's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lipstream_models import SpeechEncoder, SpeechPerceptron
from lipstream_models import perceptron as old
from lipstream_models.mel import (
    HOP,
    LOOKAHEAD,
    LOOKBACK,
    SAMPLES_PER_FRAME,
    WINDOW,
    LogMel,
    mel_filters,
)

ENCODERS = [SpeechEncoder, SpeechPerceptron]


def samples(frames: int, lookback: int = LOOKBACK) -> torch.Tensor:
    length = lookback + frames * SAMPLES_PER_FRAME + LOOKAHEAD
    return 0.2 * torch.randn(length, generator=torch.Generator().manual_seed(0))


def spectra(x: np.ndarray, mels: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel spectrum [hops, mels] and loudness of the vowel band [hops], by NumPy."""
    window = np.hanning(WINDOW + 1)[:-1]
    starts = range(0, len(x) - WINDOW + 1, HOP)
    power = np.abs([np.fft.rfft(x[s : s + WINDOW] * window) * 2 / window.sum() for s in starts]) ** 2
    hertz = np.arange(WINDOW // 2 + 1) * 16_000 / WINDOW
    loudness = power[:, (hertz >= 300) & (hertz < 3400)].sum(1) / 8
    mel, vowels = (np.log10(p + 1e-8) / 2 + 2.5 for p in (power @ mel_filters(mels).numpy().T, loudness))
    return mel, vowels


@pytest.mark.parametrize("mels", [32, 40])
def test_equals_the_fft(mels: int) -> None:
    x = samples(3).numpy().astype(np.float64)
    mel, vowels = spectra(x, mels)
    found = LogMel(mels)(torch.from_numpy(x).float())
    np.testing.assert_allclose(found[0].T.numpy(), np.column_stack([mel, vowels]), atol=2e-4)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    time = torch.arange(len(samples(1))) / 16000
    for hertz in (300.0, 1000.0, 4000.0):
        bands = LogMel(40)(torch.sin(2 * torch.pi * hertz * time))[0, :40]
        centre = (mel_filters(40) @ (torch.arange(WINDOW // 2 + 1).double() * 16000 / WINDOW))[bands.argmax(0)]
        assert (centre / hertz).log2().abs().max() < 0.25


@pytest.mark.parametrize("count", [32, 40])
def test_filters_average(count: int) -> None:
    filters = mel_filters(count)
    assert filters.shape == (count, WINDOW // 2 + 1)
    assert (filters >= 0).all()
    torch.testing.assert_close(filters.sum(1), torch.ones(count, dtype=torch.float64))


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_stream_has_the_features_of_the_whole_file(kind: type[SpeechEncoder | SpeechPerceptron]) -> None:
    torch.manual_seed(0)
    encoder = kind()
    x = samples(11, encoder.lookback)
    whole = encoder(x)
    assert whole.shape == (11, 64)
    cut = 5 * SAMPLES_PER_FRAME
    parts = [encoder(x[: encoder.lookback + cut + encoder.lookahead]), encoder(x[cut:])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_batch_equals_single_streams(kind: type[SpeechEncoder | SpeechPerceptron]) -> None:
    torch.manual_seed(0)
    encoder = kind()
    x = samples(4, encoder.lookback)
    batch = torch.stack([x, x.flip(0)])
    torch.testing.assert_close(encoder(batch), torch.stack([encoder(one) for one in batch]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_first_and_last_samples_of_its_window_matter(kind: type[SpeechEncoder | SpeechPerceptron]) -> None:
    """So that no look-ahead is waited for in vain, and none is missing."""
    torch.manual_seed(0)
    encoder = kind().double()
    x = samples(1, encoder.lookback).double().requires_grad_()
    encoder(x)[0].square().sum().backward()
    assert x.grad is not None
    moved = x.grad.abs() > 0
    assert moved[: 2 * HOP].any() or kind is SpeechPerceptron  # its running maximum is rarely so old
    assert moved[-HOP:].any()


def test_inputs_of_the_perceptron() -> None:
    x = samples(3, old.LOOKBACK).numpy().astype(np.float64)
    mel, vowels = spectra(x, 32)
    level = np.array([vowels[max(0, h - old.LEVEL_HOPS + 1) : h + 1].max() for h in range(len(vowels))])
    frames = np.concatenate([mel, 2 * (vowels - level)[:, None], level[:, None]], axis=1).reshape(-1, 4, 34)
    wanted = []
    for f in range(9, 12):  # nine frames of the past come first
        near = [frames[f + i].ravel() for i in (-1, 0, 1)]
        far = [frames[f - 8 + i, :, :32].mean(0) for i in range(old.FAR)]
        wanted.append(np.concatenate([*near, *far]))
    found = SpeechPerceptron().inputs(torch.from_numpy(x).float())[0].numpy()
    assert found.shape == (3, old.INPUTS) == (3, 632)
    np.testing.assert_allclose(found, np.stack(wanted), atol=2e-4)
