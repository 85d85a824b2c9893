"""Log-mel features: against NumPy's FFT, and a stream's against a whole file's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lipstream_models import SpeechEncoder
from lipstream_models.mel import (
    FAR,
    FEATURES,
    HOP,
    LEVEL_HOPS,
    LOOKAHEAD,
    LOOKBACK,
    MELS,
    NEAR,
    SAMPLES_PER_FRAME,
    WINDOW,
    LogMel,
    mel_filters,
)
from lipstream_training.audio_encoder import AudioEncoderRecipe, speak, train_audio_encoder
from lipstream_training.data.mouth import mouth_track
from lipstream_training.data.speech import synthesiser_available


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
    hertz = np.arange(WINDOW // 2 + 1) * 16_000 / WINDOW
    vowels = np.log10(power[:, (hertz >= 300) & (hertz < 3400)].sum(1) / 8 + 1e-8) / 2 + 2.5
    level = np.array([vowels[max(0, h - LEVEL_HOPS + 1) : h + 1].max() for h in range(len(vowels))])
    hops = np.concatenate([mel, 2 * (vowels - level)[:, None], level[:, None]], axis=1)
    frames = hops.reshape(-1, 4, MELS + 2)
    wanted = []
    for f in range(9, 12):  # nine frames of the past come first
        near = [frames[f + i].ravel() for i in (-1, 0, 1)]
        far = [frames[f - 8 + i, :, :MELS].mean(0) for i in range(FAR)]
        wanted.append(np.concatenate([*near, *far]))
    found = LogMel()(torch.from_numpy(x).float()).numpy()
    assert found.shape == (3, FEATURES) == (3, 632)
    np.testing.assert_allclose(found, np.stack(wanted), atol=2e-4)


def test_a_stream_has_the_features_of_the_whole_file() -> None:
    x, encoder = samples(11), SpeechEncoder()
    whole = encoder(x)
    cut = 5 * SAMPLES_PER_FRAME
    parts = [encoder(x[: LOOKBACK + cut + LOOKAHEAD]), encoder(x[cut:])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_a_batch_equals_single_streams() -> None:
    x = torch.stack([samples(4), samples(4).flip(0)])
    torch.testing.assert_close(LogMel()(x), torch.stack([LogMel()(one) for one in x]), rtol=0, atol=1e-5)


def test_level_is_the_running_maximum_of_the_loudness() -> None:
    """A gain changes the level but not the loudness relative to it."""
    x, mel = samples(4), LogMel()
    quiet, loud = (mel(gain * x)[:, : NEAR * 4 * (MELS + 2)].reshape(4, -1, MELS + 2) for gain in (0.1, 1.0))
    torch.testing.assert_close(quiet[..., MELS], loud[..., MELS], rtol=0, atol=1e-3)
    torch.testing.assert_close(quiet[..., MELS + 1] + 1, loud[..., MELS + 1], rtol=0, atol=1e-3)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    time = torch.arange(len(samples(1))) / 16000
    for hertz in (300.0, 1000.0, 4000.0):
        hops = LogMel()(torch.sin(2 * torch.pi * hertz * time))[0, : NEAR * 4 * (MELS + 2)]
        bands = hops.reshape(-1, MELS + 2)[:, :MELS]
        centre = (mel_filters() @ (torch.arange(WINDOW // 2 + 1).double() * 16000 / WINDOW))[bands.argmax(1)]
        assert (centre / hertz).log2().abs().max() < 0.25


def test_filters_average() -> None:
    filters = mel_filters()
    assert filters.shape == (MELS, WINDOW // 2 + 1)
    assert (filters >= 0).all()
    torch.testing.assert_close(filters.sum(1), torch.ones(MELS, dtype=torch.float64))


@pytest.mark.skipif(not synthesiser_available(), reason='NO VOICES TESTED: pip install "lipstream[training]"')
class TestSpeechEncoder:
    def test_a_voice_and_its_mouth_are_synchronous(self) -> None:
        recorded, mouth = speak(3, 4.0)
        assert len(recorded) == LOOKBACK + len(mouth) * SAMPLES_PER_FRAME + LOOKAHEAD
        # Where the microphone took nothing away, the rule gives the same mouth for the recording.
        past = -(-LOOKBACK // SAMPLES_PER_FRAME)
        aligned = np.concatenate([np.zeros(past * SAMPLES_PER_FRAME - LOOKBACK, np.float32), recorded])
        again = mouth_track(aligned, past + len(mouth)).stacked()[past:]
        assert np.corrcoef(again[:, 0], mouth[:, 0])[0, 1] > 0.6

    def test_the_loss_falls_in_training(self) -> None:
        voices = [speak(i, 3.0) for i in range(6)]
        audio, mouth = (torch.from_numpy(np.stack(x)) for x in zip(*voices, strict=True))
        losses: list[float] = []
        encoder = train_audio_encoder(
            SpeechEncoder(), audio, mouth, AudioEncoderRecipe(steps=60, batch=64), seed=0, progress=losses.append
        )
        assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
        features = encoder(audio[0])
        assert features.shape == (mouth.shape[1], 64)
        assert features.abs().max() <= 1
