"""Clips to train and to evaluate on: speech, and a drawn person who says it.

A training clip is already aligned, as by the SDK's aligner, and has a reference of the same person, pose and light
whose mouth follows other speech: the two differ only in what the audio determines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from lipstream.face import crop_matrix
from lipstream_models.mel import PAST_FRAMES, SAMPLES_AFTER, SAMPLES_PER_FRAME
from numpy.typing import NDArray

from .camera import Camera, Recording
from .faces import FacePainter, Pose, pose_track
from .identity import Identity
from .lips import MouthShape
from .microphone import Microphone
from .mouth import LOOKAHEAD, MouthTrack, closed_mouth, mouth_track
from .people3d.visemes import Manner, viseme_track
from .people3d.voices import PHONEME_LOOKAHEAD, talk
from .sheet import Points
from .speech import SAMPLE_RATE, speech

CANVAS = (420, 560)
"""Width and height of the alignment canvas."""
TEMPLATE: Points = np.array([(95.2, 112.0), (324.8, 112.0), (210.0, 224.0)])
"""Positions of left brow, right brow and nose on the canvas."""


@dataclass(frozen=True)
class Clip:
    """A training sample of n frames at 25 per second.

    Attributes:
        target: uint8 [n, size, size, 3] RGB aligned crops; the mouth says `audio`.
        reference: uint8 [n, size, size, 3]; the same except for the mouth, which says something else or nothing.
        identity: uint8 [size, size, 3]; the person at another moment, in another pose, saying something else.
        audio: float32 [(10 + n) * 640 + 800] at 16 kHz; frame f covers the samples from 640 (10 + f) on.
        mouth: the shape of the target's mouth.
        reference_mouth: the shape of the reference's mouth.
    """

    target: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    identity: NDArray[np.uint8]
    audio: NDArray[np.float32]
    mouth: MouthTrack
    reference_mouth: MouthTrack


def training_rng(index: int) -> np.random.Generator:
    """Generator of training clip `index`; its people never occur in evaluation."""
    return np.random.default_rng([0, index])


def evaluation_rng(index: int) -> np.random.Generator:
    """Generator of evaluation clip `index`; its people never occur in training."""
    return np.random.default_rng([1, index])


def draw_clip(
    rng: np.random.Generator,
    frames: int,
    size: int = 64,
    box: tuple[float, float, float, float] = (58.0, 248.0, 362.0, 552.0),
    *,
    phonemes: bool = False,
) -> Clip:
    """A random person saying random sentences, in aligned crops of `size` pixels of the canvas rectangle `box`.

    Args:
        phonemes: the mouth speaks by phonemes, as that of 3D people does; else a rule moves it by the sound.

    Raises:
        MissingExtraError: a speech synthesiser is not installed.
    """
    person = Identity.random(rng)
    if rng.random() < 0.12:  # little light
        person = replace(person, exposure=person.exposure * rng.uniform(0.3, 0.8))
    audio, mouth, said, elsewhere = (_by_phonemes if phonemes else _by_rule)(rng, frames)
    other = closed_mouth(frames) if rng.random() < 0.2 else elsewhere

    painter = FacePainter(person, density=0.0045 * size * 486 / (box[2] - box[0]))
    # Longer than the clip, so that `identity` can show another pose.
    track = pose_track(12 * frames, rng, movement=rng.uniform(0.2, 1.6), turn=0.3 if rng.random() < 0.3 else 0.09)
    poses = track[:frames]
    camera, recording = Camera.random(rng, harshness=rng.uniform(0.3, 1.6)), Recording.random(rng)
    microphone = Microphone.random(rng) if rng.random() < 0.06 else None
    wander = detector_error(frames + 1, rng)

    def draw(moment: int, pose: Pose, mouths: list[MouthShape]) -> list[NDArray[np.uint8]]:
        to_crop = crop_matrix((wander[moment] @ square(align(painter.landmarks3(pose))))[:2], size, box)
        pictures = painter.render(pose, mouths, to_crop, (size, size))
        return [microphone.hold(picture, moment) for picture in pictures] if microphone else pictures

    pairs = [draw(f, pose, [mouth_shape(mouth, f), mouth_shape(other, f)]) for f, pose in enumerate(poses)]
    # In a long video the first frame rarely resembles the current one.
    pose = track[0] if rng.random() < 0.35 else track[int(rng.integers(frames, len(track)))]
    identity = draw(frames, pose, [mouth_shape(elsewhere, int(rng.integers(frames)))])
    # The target is degraded less: a mouth cleaner than its surroundings is better than generated compression blocks.
    recordings = (recording.milder(), recording, recording)
    target, reference, still = (
        recorded.record([camera.shoot(picture, rng) for picture in pictures])
        for recorded, pictures in zip(recordings, (*zip(*pairs, strict=True), identity), strict=True)
    )
    return Clip(target, reference, still[0], audio, said, other)


_Said = tuple[NDArray[np.float32], MouthTrack, MouthTrack, MouthTrack]
"""A clip's `audio`, the mouth that is drawn, that of an average speaker, and a mouth that says something else."""


def _by_rule(rng: np.random.Generator, frames: int) -> _Said:
    end = (PAST_FRAMES + frames) * SAMPLES_PER_FRAME
    said = speech((2 * end + LOOKAHEAD + SAMPLES_AFTER) / SAMPLE_RATE, rng)
    mouth, other = (mouth_track(said.clean[at:], PAST_FRAMES + frames)[PAST_FRAMES:] for at in (0, end))
    return said.recorded[: end + SAMPLES_AFTER], mouth, mouth, other


def _by_phonemes(rng: np.random.Generator, frames: int) -> _Said:
    manner, end = Manner.random(rng), (PAST_FRAMES + frames) * SAMPLES_PER_FRAME
    said = talk((2 * end + SAMPLES_AFTER) / SAMPLE_RATE + PHONEME_LOOKAHEAD, rng)
    later = [segment.later(-end / SAMPLE_RATE) for segment in said.segments]
    spoken = (said.segments, manner), (said.segments, Manner()), (later, manner)
    mouth, average, other = (viseme_track(x, PAST_FRAMES + frames, how)[PAST_FRAMES:].mouth for x, how in spoken)
    return said.recorded[: end + SAMPLES_AFTER], mouth, average, other


def draw_video(
    rng: np.random.Generator,
    audio: NDArray[np.float32],
    size: tuple[int, int] = (320, 384),
    movement: float = 1.0,
    mouth: MouthTrack | None = None,
) -> tuple[NDArray[np.uint8], MouthTrack, Points]:
    """A head-and-shoulders video of a random person who says `audio`; the face is 40-50 % of its height.

    Args:
        audio: float32 [samples], 16 kHz, without noise.
        size: (height, width).
        movement: see `pose_track`. mouth: at least as long as `audio`; by default the rule's.

    Returns:
        frames uint8 [n, height, width, 3] RGB with n = samples // 640, the mouth, and the lips float64 [n, 6, 2] in
        pixels: left and right corner, then the middles of the upper lip's outer and inner, the lower's inner and outer
        edge.
    """
    person = Identity.random(rng)
    frames = len(audio) // SAMPLES_PER_FRAME
    mouth = mouth or mouth_track(audio, frames)
    height, width = size
    scale = rng.uniform(0.42, 0.47) * height / 430
    centre = width * rng.uniform(0.47, 0.53), height * 0.5
    to_image = np.array([[scale, 0, centre[0]], [0, scale, centre[1] - 265 * scale]])
    left, top = -to_image[:, 2] / scale
    extent = (left - 5, top - 5, left + width / scale + 5, top + height / scale + 5)
    painter = FacePainter(person, density=1.8 * scale, extent=extent)
    camera = Camera.random(rng, harshness=0.3)
    pictures = np.empty((frames, height, width, 3), np.uint8)
    lips = np.empty((frames, 6, 2))
    for f, pose in enumerate(pose_track(frames, rng, movement)):
        shape = mouth_shape(mouth, f)
        pictures[f] = camera.shoot(painter.render(pose, [shape], to_image, size)[0], rng)
        lips[f] = painter.lip_points(pose, shape) @ to_image[:, :2].T + to_image[:, 2]
    return pictures, mouth, lips


def mouth_shape(track: MouthTrack, frame: int) -> MouthShape:
    """One frame of a track."""
    t, f = track, frame
    return MouthShape(float(t.opening[f]), float(t.width[f]), float(t.teeth[f]), float(t.tongue[f]))


def align(points: Points) -> Points:
    """Similarity float64 [2, 3] that maps three landmarks [3, 2] to `TEMPLATE` on the canvas.

    As in LatentSync's aligner the points are scaled by their standard deviation before the rotation is fitted, so the
    fit is not the least-squares one.
    """
    centre, goal = points.mean(0), TEMPLATE.mean(0)
    scale = (TEMPLATE - goal).std() / (points - centre).std()
    u, _, vt = np.linalg.svd((points - centre).T @ (TEMPLATE - goal))
    turn = (u @ np.diag([1.0, np.sign(np.linalg.det(u @ vt))]) @ vt).T * scale
    return np.concatenate([turn, (goal - turn @ centre)[:, None]], axis=1)


def square(matrix: Points) -> Points:
    """[2, 3] -> [3, 3], to be multiplied."""
    return np.concatenate([matrix, [[0.0, 0.0, 1.0]]])


def detector_error(frames: int, rng: np.random.Generator) -> Points:
    """Small similarities on the canvas, float64 [frames, 3, 3]: the error of a face detector.

    One error for the clip (2 % of the crop) and one that drifts from frame to frame (0.4 %).
    """
    drift = rng.normal(0, 1, (frames + 4, 4))
    drift = np.stack([drift[i : i + frames] for i in range(5)]).sum(0) / 5**0.5
    x, y, turn, scale = (rng.normal(0, 1, 4) * (5, 6, 0.02, 0.02) + drift * (1.3, 1.6, 0.003, 0.003)).T
    c, s = (1 + scale) * np.cos(turn), (1 + scale) * np.sin(turn)
    middle = np.array([CANVAS[0] / 2, CANVAS[1] / 2])
    errors = np.zeros((frames, 3, 3))
    errors[:, 0, 0], errors[:, 0, 1], errors[:, 1, 0], errors[:, 1, 1], errors[:, 2, 2] = c, -s, s, c, 1
    errors[:, :2, 2] = middle - errors[:, :2, :2] @ middle + np.stack([x, y], 1)
    return errors
