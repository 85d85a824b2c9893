"""Real clips, without a known true mouth: does the mouth follow the loudness of a new voice, and only that?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lipstream import samples
from lipstream.media import FrameLoop, VideoReader
from lipstream_evaluate.media import RATE, VIDEOS, loudness, read_sound
from lipstream_training.data.people3d.natural import natural
from lipstream_training.data.sentences import sentence
from numpy.typing import NDArray

from .movement import Numbers, follows
from .people import Audio
from .tracks import Frames, Track

_LAGS = range(-2, 3)
_SEED = 4


def clips(paths: list[Path]) -> list[Path]:
    """These files, and the videos in these folders."""
    videos = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        videos += [file for file in inside if file == path or file.suffix.lower() in VIDEOS]
    return videos


def voices(seconds: float) -> dict[str, Audio]:
    """The sample's speech and a natural voice, float32 at 16 kHz, at most `seconds` long."""
    rng = np.random.default_rng(_SEED)
    sounds: list[NDArray[np.float64]] = []
    while sum(map(len, sounds)) < seconds * RATE:
        sounds.append(natural(sentence(rng), rng)[0])
    spoken = {"sample": read_sound(samples.SPEECH), "natural": np.concatenate(sounds).astype(np.float32)}
    return {name: sound[: round(seconds * RATE)] for name, sound in spoken.items()}


def read_clip(video: Path, count: int) -> tuple[Frames, list[int]]:
    """`count` frames as a session shows them, played back and forth if there are fewer, and their numbers in the file.

    Raises:
        MediaOpenError, NoVideoError, MediaTruncatedError: as `VideoReader`.
    """
    order, pictures = zip(*FrameLoop(VideoReader(video), count), strict=True)
    return np.stack([picture.rgb for picture in pictures]), list(order)


def following_loudness(gap: Track, voice: Audio, others: list[Audio]) -> Numbers:
    """Correlation of the result's lip gap with loudness, at the best lag within two frames (``gap``, ``lag``), and its
    mean with that of other speech at this lag (``gap_other``)."""
    wanted = loudness(voice, len(gap))
    lag = max(_LAGS, key=lambda lag: follows(gap, wanted, range(lag, lag + 1)))
    here = range(lag, lag + 1)
    return {
        "gap": follows(gap, wanted, here),
        "lag": float(lag),
        "gap_other": float(np.mean([follows(gap, loudness(other, len(gap)), here) for other in others])),
    }
