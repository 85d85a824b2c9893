"""Write a video of a drawn person with a synthetic voice, to dub. The bundled sample is generated with this."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from lipstream.media import VideoWriter

from .clips import draw_video, evaluation_rng
from .speech import SAMPLE_RATE, espeak


def draw_sample(
    folder: Path,
    *,
    person: int,
    video_text: str,
    speech_text: str,
    size: tuple[int, int] = (320, 384),
) -> tuple[Path, Path]:
    """Write `folder`/face.mp4, an unseen person saying `video_text`, and `folder`/speech.wav, saying `speech_text`.

    Args:
        person: which of the evaluation identities. size: (height, width) in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = evaluation_rng(person)
    said = espeak(video_text, "en-us", 160, 50, 50).astype(np.float32)
    frames, _, _ = draw_video(rng, said, size)
    with VideoWriter(folder / "face.mp4", size[1], size[0], audio_rate=SAMPLE_RATE, crf=20) as writer:
        for frame in frames:
            writer.write(frame)
        writer.write_audio(said)
    voice = espeak(speech_text, "en-us+f3", 150, 55, 60)
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((voice.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return folder / "face.mp4", folder / "speech.wav"
