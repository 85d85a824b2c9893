"""Each odd file of `odd_files` is dubbed through the public API; the result is decoded again with PyAV alone."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from lipstream import LipSyncEngine
from lipstream.media import read_audio
from lipstream_evaluate.media import read_sound
from numpy.typing import NDArray
from odd_files import ODD_FILES, RATE, OddFile, portrait, speech
from PIL import Image
from voice_and_video import write_wav


@pytest.fixture(scope="module")
def engine() -> LipSyncEngine:
    return LipSyncEngine.load("tiny", threads=1)


@pytest.mark.parametrize("odd", ODD_FILES, ids=lambda odd: odd.name)
def test_outcome(tmp_path: Path, engine: LipSyncEngine, odd: OddFile) -> None:
    source, output = tmp_path / odd.name, tmp_path / "out.mp4"
    odd.write(source)
    speech_file = None if odd.own_sound else write_wav(tmp_path / "speech.wav", speech(odd.frames / 25), RATE)
    if odd.error is not None:
        with pytest.raises(odd.error):
            engine.dub(source, speech_file, output)
        assert not output.exists()
        return
    result = engine.dub(source, speech_file, output)
    assert len(result.warnings) == bool(odd.warning), result.warnings
    assert odd.warning in "".join(result.warnings)
    assert len(result.notes) == bool(odd.note), result.notes
    assert odd.note in "".join(result.notes)
    assert odd.bypassed[0] <= result.bypassed <= odd.bypassed[1]
    with av.open(str(output)) as file:
        frames = list(file.decode(video=0))
    assert len(frames) == result.frames == odd.frames
    assert (frames[0].width, frames[0].height) == odd.size
    sound, rate = read_audio(output)
    for span, heard in ((odd.loud, True), (odd.quiet, False)):
        if span is not None:
            part = sound[round(span[0] * rate) : round(span[1] * rate)]
            assert (np.sqrt(np.mean(np.square(part))) > 0.02) == heard
    if odd.name.startswith("exif"):  # upright, whatever way it was stored
        shown = np.asarray(frames[-1].to_image().resize((64, 72)), int)
        upright = np.asarray(Image.fromarray(portrait()[:, 20:276]).resize((64, 72)), int)
        assert np.abs(shown - upright).mean() < 6


def test_training_and_evaluation_have_the_same_clock(tmp_path: Path) -> None:
    """A hole in the sound stays one; of sound that begins first, the part before the first picture is left out."""
    files = {odd.name: odd for odd in ODD_FILES}
    for name in ("hole.mkv", "sound_first.mkv"):
        files[name].write(tmp_path / name)
    sound = read_sound(tmp_path / "hole.mkv")
    assert len(sound) == 2.7 * RATE
    assert not sound[round(1.05 * RATE) : round(2.15 * RATE)].any()
    np.testing.assert_array_equal(sound[round(2.2 * RATE) :], read_sound_of(speech(1.5)[RATE:]))
    sound = read_sound(tmp_path / "sound_first.mkv")
    np.testing.assert_array_equal(sound, read_sound_of(speech(1.2)[round(0.6 * RATE) :]))


def read_sound_of(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """As 16 bits."""
    return np.asarray((samples * 32767).astype("<i2") / 32768, np.float32)
