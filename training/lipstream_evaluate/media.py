"""Media files of clips, for training and evaluation; audio is mono, 16 kHz, from the first video frame on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lipstream.errors import NoVideoError
from lipstream.media import FPS, AudioReader, StreamResampler, VideoReader
from numpy.typing import NDArray

RATE = 16_000
"""Hz."""
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".y4m", ".gif")
SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus")


def read_sound(path: Path) -> NDArray[np.float32]:
    """float32 [samples] at 16 kHz of a sound or video file; of a video from its first frame on.

    Raises:
        MediaOpenError, NoAudioError, MediaTruncatedError, AudioFormatError: as `AudioReader`.
    """
    reader = AudioReader(path)
    resampler = StreamResampler(reader.info.rate, RATE)
    blocks = [resampler.push(block) for block in reader]
    sound = np.concatenate([*blocks, resampler.flush()])
    try:
        late = round((reader.info.start_time - VideoReader(path).info.start_time) * RATE)
    except NoVideoError:
        return sound
    return np.concatenate([np.zeros(late, np.float32), sound]) if late > 0 else sound[-late:]


def loudness(audio: NDArray[np.float32], frames: int) -> NDArray[np.float64]:
    """Root mean square of each frame's samples, float64 [frames]; `audio` at 16 kHz."""
    samples = RATE // FPS
    whole = np.zeros(frames * samples, np.float32)
    whole[: len(audio)] = audio[: len(whole)]
    return np.asarray(np.sqrt(np.square(whole.reshape(frames, -1), dtype=np.float64).mean(axis=1)))
