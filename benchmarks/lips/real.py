"""Real clips, without a known true mouth: does the mouth follow the phonemes and the loudness of a new voice alone?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from lipstream.media import FrameLoop, VideoReader
from lipstream_evaluate.media import RATE, VIDEOS, loudness
from lipstream_training.cli import SPEECH_TEXT
from lipstream_training.data.people3d.visemes import Manner, viseme_track
from lipstream_training.data.people3d.voices import Talk, Voice
from lipstream_training.data.sample import OTHER, say
from lipstream_training.data.sentences import sentence

from .movement import Numbers, follows
from .people import Audio, seen_opening
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


def voices(seconds: float) -> dict[str, Talk]:
    """The sample's speech and a natural voice, at most `seconds` long."""
    rng, voice = np.random.default_rng(_SEED), Voice(None, 1.0)
    spoken = {"sample": say(SPEECH_TEXT, OTHER), "natural": say(" ".join(sentence(rng) for _ in range(6)), voice)}
    end = round(seconds * RATE)
    return {name: replace(said, clean=said.clean[:end]) for name, said in spoken.items()}


def read_clip(video: Path, count: int) -> tuple[Frames, list[int]]:
    """`count` frames as a session shows them, played back and forth if there are fewer, and their numbers in the file.

    Raises:
        MediaOpenError, NoVideoError, MediaTruncatedError: as `VideoReader`.
    """
    order, pictures = zip(*FrameLoop(VideoReader(video), count), strict=True)
    return np.stack([picture.rgb for picture in pictures]), list(order)


def following_phonemes(gap: Track, voice: Talk, others: list[Talk]) -> Numbers:
    """Correlation of the result's lip gap with what the phonemes ask (``gap_phonemes``), and its mean with those of
    other speech."""
    said = [seen_opening(viseme_track(x.segments, len(gap), Manner())) for x in (voice, *others)]
    own, *rest = (follows(gap, opening) for opening in said)
    return {"gap_phonemes": own, "gap_phonemes_other": float(np.mean(rest))}


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
