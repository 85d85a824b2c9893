"""People whose mouths are known, since they speak by phonemes: drawn ones and 3D ones.

Each is shown twice in the same frames, saying A and saying B, and is unseen in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lipstream_models.mel import SAMPLES_PER_FRAME
from lipstream_training.data.clips import draw_video, evaluation_rng
from lipstream_training.data.people3d.clips import render_video
from lipstream_training.data.people3d.visemes import ARTICULATORS, Manner, VisemeTrack, viseme_track
from lipstream_training.data.people3d.voices import Talk, talk
from numpy.typing import NDArray

from .tracks import Frames

Audio = NDArray[np.float32]

_FIRST_PERSON = 1000  # samples and previews use the first evaluation identities
_SPEECH = 3  # seeds [3, ...]: training draws from [0, ...], evaluation identities from [1, ...]
_PRESSED = 0.5  # strength of p, b, m from which the lips are together


@dataclass(frozen=True)
class Wanted:
    """What a mouth should do in n frames.

    Attributes:
        opening: float32 [n], 0 closed .. 1 wide open, of the gap that FaceMesh sees.
        width, rounding: float32 [n], on the scales of `VisemeTrack`.
        closures: first and last frame of each p, b, m.
    """

    opening: NDArray[np.float32]
    width: NDArray[np.float32]
    rounding: NDArray[np.float32]
    closures: list[tuple[int, int]]

    @classmethod
    def drawn(cls, mouth: VisemeTrack) -> Wanted:
        return cls(mouth.opening, mouth.width, np.clip(-mouth.width, 0, 1), closures(mouth))

    @classmethod
    def rendered(cls, mouth: VisemeTrack) -> Wanted:
        return cls(seen_opening(mouth), mouth.width, mouth.rounding, closures(mouth))


@dataclass(frozen=True)
class Case:
    """One person in n frames.

    Attributes:
        source, target: uint8 [n, H, W, 3], saying A and saying B: equal except for the mouth. speech: B, float32 at
            16 kHz. said: the mouth that "A", "B" and an unrelated "C" ask for.
    """

    source: Frames
    target: Frames
    speech: Audio
    said: dict[str, Wanted]


def seen_opening(mouth: VisemeTrack) -> NDArray[np.float32]:
    """The gap between the lips as FaceMesh sees it: it takes funnelled lips (sh, r) for closed ones.

    `VisemeTrack.opening`, which is that of the mesh, correlates with what FaceMesh measures on four rendered people by
    0.72 to 0.89, this by 0.89 to 0.95.
    """
    jaw, lower, upper, press = (
        mouth.articulators[:, ARTICULATORS.index(name)] for name in ("jaw", "lower", "upper", "press")
    )
    gap = (jaw + 0.12 * lower + 0.3 * upper) * (1 - press) - 0.12 * press
    return np.asarray(np.clip(gap, 0, 1), np.float32)


def closures(mouth: VisemeTrack) -> list[tuple[int, int]]:
    """First and last frame of each stretch in which the lips are together for p, b or m."""
    pressed = mouth.articulators[:, ARTICULATORS.index("press")] > _PRESSED
    edges = np.flatnonzero(np.diff(pressed, prepend=False, append=False))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]


def drawn_case(person: int, seconds: float) -> Case:
    """A drawn person, whose mouth is that of an average speaker."""
    spoken, tracks = _three(person, seconds)
    videos = [
        draw_video(evaluation_rng(_FIRST_PERSON + person), x.clean, mouth=track.mouth)[0]
        for x, track in zip(spoken[:2], tracks, strict=False)
    ]
    said = {name: Wanted.drawn(track) for name, track in zip("ABC", tracks, strict=True)}
    return Case(videos[0], videos[1], spoken[1].clean, said)


def rendered_case(person: int, seconds: float) -> Case:
    """A 3D person; what is said is what the phonemes ask of an average speaker."""
    spoken, tracks = _three(person, seconds)
    source, target = (render_video(evaluation_rng(_FIRST_PERSON + person), x).frames for x in spoken[:2])
    said = {name: Wanted.rendered(track) for name, track in zip("ABC", tracks, strict=True)}
    return Case(source, target, spoken[1].clean, said)


CASES = {"drawn": drawn_case, "3d": rendered_case}


def other_speech(seconds: float, count: int) -> list[Talk]:
    """What `count` more random voices say."""
    return [_said(seconds, [_SPEECH, 0, 3 + i]) for i in range(count)]


def _three(person: int, seconds: float) -> tuple[list[Talk], list[VisemeTrack]]:
    """What is said as A, B and C, and the mouth of an average speaker who says it."""
    spoken = [_said(seconds, [_SPEECH, person, i]) for i in range(3)]
    return spoken, [viseme_track(x.segments, len(x.clean) // SAMPLES_PER_FRAME, Manner()) for x in spoken]


def _said(seconds: float, seed: list[int]) -> Talk:
    """What a random voice says; drawn again if it is silent."""
    rng = np.random.default_rng(seed)
    while not (said := talk(seconds, rng)).clean.any():
        pass
    return said
