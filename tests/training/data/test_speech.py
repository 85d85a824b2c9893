"""Synthesised speech: repeatable, of the promised length, and recorded in step with what is said."""

from __future__ import annotations

import numpy as np
import pytest
from lipstream_training.data.speech import SAMPLE_RATE, degrade, espeak, resample, speech, synthesiser_available

needs_voice = pytest.mark.skipif(
    not synthesiser_available(),
    reason='NO SPEECH TESTED: espeakng-loader is missing; pip install "lipstream[training]"',
)


@needs_voice
def test_same_seed_same_speech_whatever_was_said_before() -> None:
    first = speech(1.3, np.random.default_rng(5))
    speech(0.7, np.random.default_rng(6))
    again = speech(1.3, np.random.default_rng(5))
    assert np.array_equal(first.clean, again.clean)
    assert np.array_equal(first.recorded, again.recorded)
    assert not np.array_equal(first.clean, speech(1.3, np.random.default_rng(6)).clean)


@needs_voice
@pytest.mark.parametrize("seconds", [0.04, 1.0, 3.21])
def test_length_type_and_range(seconds: float) -> None:
    for seed in range(4):
        clip = speech(seconds, np.random.default_rng(seed))
        for audio in (clip.clean, clip.recorded):
            assert audio.shape == (round(seconds * SAMPLE_RATE),)
            assert audio.dtype == np.float32
            assert np.isfinite(audio).all()
            assert np.abs(audio).max() <= 1


@needs_voice
def test_voices_differ_and_pitch_is_followed() -> None:
    def fundamental(audio: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(audio)) ** 2
        correlation = np.fft.irfft(spectrum)[: SAMPLE_RATE // 60]
        low = SAMPLE_RATE // 400
        return SAMPLE_RATE / (low + int(correlation[low:].argmax()))

    text = "a large apple"
    assert fundamental(espeak(text, "en-us", pitch=80)) > 1.2 * fundamental(espeak(text, "en-us", pitch=10))
    assert len(espeak(text, "en-us", rate=120)) > 1.3 * len(espeak(text, "en-us", rate=230))


def test_resample_keeps_a_tone() -> None:
    seconds = np.arange(22_050) / 22_050
    tone = np.sin(2 * np.pi * 440 * seconds)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(resample(tone, 22_050) - expected).max() < 1e-6


def test_recording_does_not_shift_the_sound() -> None:
    """A burst within silence keeps its position through any room and microphone."""
    rng = np.random.default_rng(0)
    clean = np.zeros(SAMPLE_RATE, np.float32)
    clean[8000:8400] = 0.2 * rng.standard_normal(400)
    for seed in range(12):
        recorded = degrade(clean, np.random.default_rng(seed))
        lag = int(np.argmax(np.correlate(recorded, clean[8000:8400], "valid"))) - 8000
        assert abs(lag) <= 2
        assert recorded.shape == clean.shape
