"""Write a video of a 3D person speaking, and other speech, to dub. The bundled sample is generated with this."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from lipstream.media import VideoWriter
from numpy.typing import NDArray

from .clips import evaluation_rng
from .people3d.clips import render_video
from .people3d.visemes import Manner, Segment
from .people3d.voices import Talk, Voice
from .speech import SAMPLE_RATE

_PAUSE = 0.3
"""Seconds of silence before and after what is said."""
_NOISE = 2e-4
"""Its standard deviation, of full scale."""
OWN, OTHER = Voice(None, 1.0, pitch=0.74, formants=0.82), Voice(None, 0.95, pitch=1.02, formants=0.94)
"""The voice of the person, and the one to dub with; neither is trained on."""


def render_sample(
    folder: Path, *, person: int, video_text: str, speech_text: str, size: tuple[int, int] = (320, 384)
) -> tuple[Path, Path]:
    """Write `folder`/face.mp4, an unseen person saying `video_text`, and `folder`/speech.wav, saying `speech_text`.

    Args:
        person: which of the evaluation identities. size: (height, width) in pixels.

    Raises:
        MissingExtraError: a package of the extra ``[people]`` or the natural voice is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = evaluation_rng(person)
    video = render_video(rng, say(video_text, OWN), size, manner=Manner())
    with VideoWriter(folder / "face.mp4", size[1], size[0], audio_rate=SAMPLE_RATE, crf=20) as writer:
        for frame in video.frames:
            writer.write(frame)
        writer.write_audio(video.audio)
    speech: NDArray[np.float32] = say(speech_text, OTHER).clean
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((speech * 32767).astype("<i2").tobytes())
    return folder / "face.mp4", folder / "speech.wav"


def say(text: str, voice: Voice) -> Talk:
    """Say `text` between two pauses, at a peak of 0.7 of full scale, over the faint noise that every recording has."""
    rng = np.random.default_rng(0)
    sound, visemes = voice.say(text, rng)
    pause = np.zeros(round(_PAUSE * SAMPLE_RATE))
    spoken = np.concatenate([pause, 0.7 * sound / np.abs(sound).max(), pause])
    clean = (spoken + rng.normal(0, _NOISE, len(spoken))).astype(np.float32)
    end = len(clean) / SAMPLE_RATE
    silent = Segment("rest", -1.0, _PAUSE), Segment("rest", end - _PAUSE, end + 1.0)
    return Talk(clean, clean, [silent[0], *(x.later(_PAUSE) for x in visemes), silent[1]])
