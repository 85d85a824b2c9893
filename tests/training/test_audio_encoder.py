"""The audio encoder's training: sound and mouth agree in time, unseen voices stay unseen, a short training helps."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from lipstream_models import SpeechEncoder
from lipstream_models.mel import PAST_FRAMES, SAMPLES_AFTER, SAMPLES_PER_FRAME
from lipstream_training import audio_encoder
from lipstream_training.audio_encoder import MOUTH, AudioEncoderRecipe, Spoken, speak, train_audio_encoder
from lipstream_training.data.people3d.natural import natural_available
from lipstream_training.data.people3d.visemes import VISEMES
from lipstream_training.data.people3d.voices import Talk, Voice, silence
from lipstream_training.data.speech import synthesiser_available
from safetensors.torch import save_file

from benchmarks.audio_encoder import build_parser, correlations, features, fit, run
from benchmarks.common import main

if not (natural_available() and synthesiser_available()):
    pytest.skip('NO VOICES TESTED: pip install "lipstream[people]"', allow_module_level=True)

OPENING, TEETH = MOUTH.index("opening"), MOUTH.index("teeth")


@cache
def voices(count: int, seconds: float = 3.0, unseen: bool = False) -> list[Spoken]:
    return [speak(i, seconds, unseen=unseen) for i in range(count)]


def band(sound: np.ndarray, frames: int, low: float, high: float) -> np.ndarray:
    """Loudness in dB of a band in each frame, by NumPy."""
    first = PAST_FRAMES * SAMPLES_PER_FRAME
    cut = sound[first : first + frames * SAMPLES_PER_FRAME].reshape(frames, SAMPLES_PER_FRAME)
    power = np.abs(np.fft.rfft(cut * np.hanning(SAMPLES_PER_FRAME))) ** 2
    hertz = np.fft.rfftfreq(SAMPLES_PER_FRAME, 1 / 16_000)
    return np.asarray(10 * np.log10(power[:, (hertz >= low) & (hertz < high)].sum(1) + 1e-4))


def test_lengths() -> None:
    for voice in voices(24)[:3]:
        assert voice.mouth.shape == (75, 6)
        assert voice.visemes.shape == (75,)
        for sound in (voice.clean, voice.recorded):
            assert len(sound) == (PAST_FRAMES + 75) * SAMPLES_PER_FRAME + SAMPLES_AFTER


@pytest.mark.parametrize("unseen", [False, True])
def test_sound_and_mouth_are_synchronous(unseen: bool) -> None:
    """The mouth is open where the voice is loud, and shows the teeth where it hisses; not a frame or two later."""
    spoken = [voice for voice in voices(24, unseen=unseen) if voice.clean.any()]

    def agreement(value: int, low: float, high: float, late: int) -> float:
        found = []
        for voice in spoken:
            loud = np.roll(band(voice.clean, 75, low, high), late)
            found.append(np.corrcoef(loud[2:-2], voice.mouth[2:-2, value])[0, 1])
        return float(np.mean(found))

    for value, low, high in ((OPENING, 300, 3400), (TEETH, 4000, 7600)):
        by_lag = {late: agreement(value, low, high, late) for late in range(-2, 3)}
        assert max(by_lag, key=by_lag.__getitem__) == 0, by_lag
        assert by_lag[0] > 0.2


def test_visemes_agree_with_the_mouth() -> None:
    closed, open_ = VISEMES.index("p"), VISEMES.index("a")
    mouth = np.concatenate([voice.mouth for voice in voices(24)])
    visemes = np.concatenate([voice.visemes for voice in voices(24)])
    assert mouth[visemes == closed, MOUTH.index("closure")].mean() > 0.8
    assert mouth[visemes == open_, OPENING].mean() > mouth[visemes == closed, OPENING].mean() + 0.3


def test_voices_for_measurement_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    drawn = [Voice.random(rng) for _ in range(2000)]
    for kind in (True, False):  # of both synthesisers a part is kept
        share = np.mean([voice.unseen for voice in drawn if (voice.synthetic is None) == kind])
        assert 0.08 < share < 0.3
    heard: list[Voice] = []

    def listen(seconds: float, rng: np.random.Generator, voice: Voice) -> Talk:
        heard.append(voice)
        return silence(seconds, rng)

    monkeypatch.setattr(audio_encoder, "talk", listen)
    for unseen in (False, True):
        heard.clear()
        for i in range(60):
            speak(i, 1.0, unseen=unseen)
        assert len(heard) > 50
        assert {voice.unseen for voice in heard} == {unseen}


def test_a_short_training_helps_on_unseen_voices() -> None:
    def opening(encoder: SpeechEncoder) -> float:
        """Correlation on unseen voices of a linear reading of the features."""
        heard = voices(24)
        read = fit(
            np.concatenate([features(encoder, v.clean) for v in heard]), np.concatenate([v.mouth for v in heard])
        )
        found = []
        for voice in voices(24, unseen=True):
            x = features(encoder, voice.clean)
            mouth = np.column_stack([x, np.ones(len(x))]) @ read
            found.append(correlations(mouth, voice.mouth).mean())
        return float(np.mean(found))

    torch.manual_seed(0)
    encoder = SpeechEncoder().eval()
    before = opening(encoder)
    losses: list[float] = []
    recipe = AudioEncoderRecipe(steps=100, batch=16, frames=30, average=0.9)
    train_audio_encoder(encoder, voices(24), recipe, seed=0, progress=losses.append)
    assert len(losses) == 100
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert opening(encoder) > before + 0.05
    assert encoder(torch.zeros(encoder.lookback + 640 + encoder.lookahead)).abs().max() <= 1


def test_the_benchmark_reads_the_stages_file(tmp_path: Path) -> None:
    save_file(SpeechEncoder().state_dict(), tmp_path / "audio_encoder.safetensors")
    student, result = str(tmp_path / "audio_encoder.safetensors"), tmp_path / "result.json"
    assert main(run, build_parser().parse_args(["--quick", "--student", student, "--json", str(result)])) == 1
    found = json.loads(result.read_text())["results"]["correlation"]
    assert {*found} == {"encoder, clean", "encoder, recorded", "rule, clean", "rule, recorded"}
    assert all({*row} == {*MOUTH} and max(map(abs, row.values())) < 0.9 for row in found.values())


def test_correlations_and_fit_are_numpys() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3)).astype(np.float32)
    y = (x @ rng.standard_normal((3, 2)) + 4 + 0.3 * rng.standard_normal((200, 2))).astype(np.float32)
    wanted = [np.corrcoef(x[:, 0], y[:, 1])[0, 1]]
    np.testing.assert_allclose(correlations(x[:, :1], y[:, 1:]), wanted, atol=1e-6)
    padded = np.column_stack([x, np.ones(200)])
    np.testing.assert_allclose(fit(x, y), np.linalg.lstsq(padded, y, rcond=None)[0], atol=2e-3)
