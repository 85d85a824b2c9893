"""The sound of a clip, for training and evaluation: mono, 16 kHz, starting with the first frame of the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lipstream.errors import NoVideoError
from lipstream.media import AudioReader, StreamResampler, VideoReader
from numpy.typing import NDArray

RATE = 16_000


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
