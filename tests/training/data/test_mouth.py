"""The drawing rule: local in time, independent of the gain, closed in silence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream_models.mel import SAMPLES_PER_FRAME
from lipstream_training.data.mouth import LOOKAHEAD, LOOKBACK, MouthTrack, mouth_track
from lipstream_training.data.speech import espeak, synthesiser_available

FRAMES = 30


def as_array(track: MouthTrack) -> np.ndarray:
    return np.stack([track.opening, track.width, track.teeth, track.tongue], 1)


def babble(seed: int, frames: int = FRAMES) -> np.ndarray:
    """Vowel-like tones with random formants and loudness, changing every 80 ms."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames * SAMPLES_PER_FRAME) / 16_000
    audio = np.zeros(len(time))
    for start in range(0, len(time), 1280):
        part = time[start : start + 1280]
        for low, high in ((120, 300), (300, 1000), (800, 2600), (3000, 7000)):
            audio[start : start + 1280] += rng.uniform(0, 0.1) * np.sin(2 * np.pi * rng.uniform(low, high) * part)
    return audio.astype(np.float32)


def vowel(first: float, second: float, frames: int = 15) -> np.ndarray:
    """Harmonics of 120 Hz under two resonances."""
    time = np.arange(frames * SAMPLES_PER_FRAME) / 16_000
    audio = np.zeros(len(time))
    for harmonic in np.arange(120, 4000, 120):
        gain = 1 / (1 + ((harmonic - first) / 90) ** 2) + 0.4 / (1 + ((harmonic - second) / 120) ** 2)
        audio += gain * np.sin(2 * np.pi * harmonic * time)
    return (0.1 * audio / audio.std()).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), frame=st.integers(0, FRAMES - 2))
def test_sound_after_the_lookahead_has_no_effect(seed: int, frame: int) -> None:
    audio, changed = babble(seed), babble(seed)
    end = (frame + 1) * SAMPLES_PER_FRAME + LOOKAHEAD
    changed[end:] = babble(seed + 1)[end:]
    before, after = as_array(mouth_track(audio, FRAMES)), as_array(mouth_track(changed, FRAMES))
    assert np.array_equal(before[: frame + 1], after[: frame + 1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), frame=st.integers(9, FRAMES - 1))
def test_sound_before_the_lookback_has_no_effect(seed: int, frame: int) -> None:
    audio, changed = babble(seed), babble(seed)
    start = frame * SAMPLES_PER_FRAME - LOOKBACK
    changed[:start] = babble(seed + 1)[:start]
    before, after = as_array(mouth_track(audio, FRAMES)), as_array(mouth_track(changed, FRAMES))
    assert np.array_equal(before[frame:], after[frame:])


def test_audio_up_to_40_ms_ahead_has_an_effect() -> None:
    audio = babble(3)
    changed = audio.copy()
    changed[11 * SAMPLES_PER_FRAME : 11 * SAMPLES_PER_FRAME + LOOKAHEAD] = 0
    assert not np.array_equal(as_array(mouth_track(audio, FRAMES))[10], as_array(mouth_track(changed, FRAMES))[10])


def test_silence_closes_the_mouth() -> None:
    assert mouth_track(np.zeros(16_000, np.float32), 25).opening.max() == 0
    hush = (1e-4 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)  # -80 dBFS
    assert mouth_track(hush, 25).opening.max() < 0.02
    audio = babble(1)
    audio[10 * SAMPLES_PER_FRAME :] = 0
    assert mouth_track(audio, FRAMES).opening[12:].max() == 0


@pytest.mark.parametrize("gain", [0.2, 4.0])
def test_gain_has_little_effect(gain: float) -> None:
    audio = babble(2)
    assert np.abs(as_array(mouth_track(audio, FRAMES)) - as_array(mouth_track(gain * audio, FRAMES))).max() < 0.02


def test_vowels_have_their_shapes() -> None:
    ah, ee, oo = (mouth_track(vowel(*f), 15)[5:10] for f in ((730, 1150), (280, 2300), (310, 870)))
    assert ah.opening.min() > 0.7
    assert ee.opening.max() < 0.5
    assert oo.opening.max() < 0.5
    assert ee.width.min() > 0.5
    assert oo.width.max() < -0.3


@pytest.mark.skipif(not synthesiser_available(), reason="NO SPEECH TESTED: espeakng-loader is missing")
def test_speech_uses_the_whole_range_and_p_closes() -> None:
    said = espeak("papa, papa! my mama wants a big apple, and bob keeps the poor old dog happy.", "en-us")
    said = (0.08 * said / said.std()).astype(np.float32)
    opening = mouth_track(said, len(said) // SAMPLES_PER_FRAME).opening
    assert opening.std() > 0.25
    assert opening.min() < 0.05
    assert opening.max() > 0.9
    word = espeak("apapa", "en-us")
    opening = mouth_track((0.08 * word / word.std()).astype(np.float32), len(word) // SAMPLES_PER_FRAME).opening
    loud = np.flatnonzero(opening > 0.4)
    assert opening[loud[0] : loud[-1]].min() < 0.25  # closed between two open vowels
