"""A person's video -> aligned crops and sound: a part to train on, and the last third, held out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from lipstream.bundle import Geometry
from lipstream.errors import AudioFormatError, FootageError
from lipstream.face import FaceDetector, FaceOptions, LipStreamFacePipeline, MouthWatch
from lipstream.face.landmarks import bounding_box
from lipstream.media import FPS, VideoReader
from lipstream.session.reference import no_face
from lipstream_evaluate.media import loudness, read_sound
from numpy.typing import NDArray
from tqdm import tqdm

from ..prepare.cut import other_faces

HELD_OUT = 1 / 3
"""Share of the frames, the last ones."""
LONGEST = 300
"""Seconds of a video that are read."""
_OTHER = 0.35  # area of another face over that of the person from which there are several people
_OTHERS = 0.2  # share of the looks for other faces that may find one
_QUIET = 3e-3  # greatest loudness of a frame, as of 1, below which there is no speech


@dataclass(frozen=True)
class Run:
    """Consecutive frames that show the person.

    Attributes:
        start: its first frame, by the video's clock. crops: uint8 [n, S, S, 3] RGB.
    """

    start: int
    crops: NDArray[np.uint8]

    def clips(self, frames: int) -> list[Run]:
        """The run cut into clips of `frames` frames; what remains is left out."""
        starts = range(0, len(self.crops) - frames + 1, frames)
        return [Run(self.start + first, self.crops[first : first + frames]) for first in starts]


@dataclass(frozen=True)
class Footage:
    """Runs to train on and, later ones, held out; `sound` float32 at 16 kHz from the video's first frame on."""

    training: list[Run]
    held_out: list[Run]
    sound: NDArray[np.float32]

    @property
    def seconds(self) -> float:
        """Of video that shows the person."""
        return sum(len(run.crops) for run in self.training + self.held_out) / FPS


def read_footage(
    path: Path,
    geometry: Geometry,
    keep: NDArray[np.float32],
    *,
    face_at: tuple[float, float] | None,
    least: float,
    quiet: bool = False,
) -> Footage:
    """The crops of the person in the first five minutes of a video, as a session would cut them.

    Frames are left out that show no face, or a covered mouth.

    Args:
        keep: float32 [S, S], the bundle's `mask.composite`. face_at: see `FaceOptions`.
        least: seconds of the face that are needed.

    Raises:
        FootageError: less than `least` seconds of the face, several people, or silence.
        FaceNotFoundError: no face at all. NoAudioError: no sound. And those of `VideoReader` and `AudioReader`.
    """
    sound = read_sound(path)
    if not np.isfinite(sound).all():
        raise AudioFormatError(f"the sound of {path} holds values that are not finite", expected="numbers")
    runs, frames = _runs(path, geometry, keep, face_at, quiet)
    if not runs:
        raise no_face(frames, FaceOptions(at=face_at))
    shown = sum(len(run.crops) for run in runs)
    if shown < least * FPS:
        raise FootageError(
            f"{path} shows the person's face for {shown / FPS:.1f} s of {frames / FPS:.1f}",
            expected=f"at least {least:g} s",
            fix="give a longer video in which the face is seen, uncovered",
        )
    if loudness(sound, frames).max() < _QUIET:
        raise FootageError(f"{path} is silent", expected="the person's voice", fix="give a video with its own sound")
    training, held_out = _split(runs, shown - round(shown * HELD_OUT))
    return Footage(training, held_out, sound)


def _runs(
    path: Path,
    geometry: Geometry,
    keep: NDArray[np.float32],
    face_at: tuple[float, float] | None,
    quiet: bool,
) -> tuple[list[Run], int]:
    """The runs of a video, and how many frames of it were read."""
    tracker = FaceOptions("bypass", face_at).tracker()
    pipeline, watch, detector = LipStreamFacePipeline(geometry, keep), MouthWatch(), FaceDetector()
    reader = VideoReader(path)
    index, looks, crowded = 0, 0, 0
    crops: list[NDArray[np.uint8]] = []
    at: list[tuple[int, int]] = []  # frame and scene of each crop
    total = round(min(reader.info.duration or LONGEST, LONGEST) * FPS)
    with tqdm(total=total, desc="faces", unit="frame", disable=quiet or None) as bar:
        for index, picture in enumerate(reader.pictures()):
            if index == LONGEST * FPS:
                break
            bar.update()
            face = tracker.track(picture)
            if face is None:
                continue
            if face_at is None and index % FPS == 0:
                looks += 1
                box = bounding_box(face.landmarks).astype(np.float64)
                crowded += other_faces(detector, picture.rgb, box) > _OTHER
            crop = pipeline.crop(picture, face.matrix)
            if watch(crop, face.scene) != "covered":
                crops.append(crop)
                at.append((index, face.scene))
    if looks and crowded > _OTHERS * looks:
        raise FootageError(
            f"{path} shows several people",
            expected="one person",
            fix="say which one by a pixel on the face, --face-at X,Y, or cut the video",
        )
    if not crops:
        return [], index + 1
    breaks = [i for i, (a, b) in enumerate(pairwise(at), 1) if b != (a[0] + 1, a[1])]
    ends = [0, *breaks, len(crops)]
    return [Run(at[a][0], np.stack(crops[a:b])) for a, b in pairwise(ends)], index + 1


def _split(runs: list[Run], first: int) -> tuple[list[Run], list[Run]]:
    """The first `first` frames, and the others."""
    before: list[Run] = []
    after: list[Run] = []
    for run in runs:
        n = min(len(run.crops), first)
        first -= n
        before += [Run(run.start, run.crops[:n])] if n else []
        after += [Run(run.start + n, run.crops[n:])] if n < len(run.crops) else []
    return before, after
