"""Training clips and videos of 3D people, in the form of the drawn ones (`data.clips`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lipstream.face import crop_matrix
from lipstream_models.mel import PAST_FRAMES, SAMPLES_AFTER, SAMPLES_PER_FRAME
from numpy.typing import NDArray

from ..camera import Camera, Recording
from ..clips import Clip, detector_error, square
from ..faces import Pose, pose_track
from ..sheet import Points
from ..speech import SAMPLE_RATE
from .backdrop import Backdrop
from .find import FaceFinder
from .light import Light
from .lips import lip_vertices
from .occluders import random_occluder
from .person import Person
from .shot import Shot, finer
from .visemes import Manner, VisemeTrack, rest_track, viseme_track
from .voices import PHONEME_LOOKAHEAD, Talk, talk

_ATTEMPTS = 8
_FOUND = 0.5  # probability of a face, as in the SDK's tracking


@dataclass(frozen=True)
class RenderedClip(Clip):
    """A clip with all targets of its mouth.

    Attributes:
        visemes: of the target, as an average speaker would say `audio`: the same sound always gives the same values.
    """

    visemes: VisemeTrack


@dataclass(frozen=True)
class RenderedVideo:
    """A head-and-shoulders video of n frames at 25 per second.

    Attributes:
        frames: uint8 [n, height, width, 3] RGB.
        audio: float32 [n * 640], 16 kHz, without noise.
        visemes: the mouth that is rendered.
        lips: float64 [n, 6, 2] in pixels: left and right corner, then the middles of the upper lip's outer and inner,
            the lower's inner and outer edge.
    """

    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    visemes: VisemeTrack
    lips: Points


def render_clip(
    rng: np.random.Generator,
    frames: int,
    size: int = 64,
    box: tuple[float, float, float, float] = (58.0, 248.0, 362.0, 552.0),
) -> RenderedClip:
    """A random person saying random sentences, in aligned crops of `size` pixels of the canvas rectangle `box`.

    Raises:
        MissingExtraError: a package of the extra ``[people]`` or a synthesiser is not installed.
    """
    for _ in range(_ATTEMPTS):
        person = Person(rng)
        shot = Shot(person, Light.random(rng), rng)
        track = pose_track(12 * frames, rng, movement=rng.uniform(0.2, 1.6), turn=0.3 if rng.random() < 0.3 else 0.09)
        backdrop = Backdrop(rng, density=size / 64)
        _, presence = FaceFinder(shot, backdrop).align(shot.place({}, track[0]), track[0])
        if presence > _FOUND:  # a video without a face gives no clip
            break
    manner = Manner.random(rng)
    samples, past = frames * SAMPLES_PER_FRAME, PAST_FRAMES * SAMPLES_PER_FRAME
    said = talk((2 * (past + samples) + SAMPLES_AFTER) / SAMPLE_RATE + PHONEME_LOOKAHEAD, rng)
    spoken = said.segments
    other = [segment.later(-(past + samples) / SAMPLE_RATE) for segment in spoken]
    mouth, elsewhere = (viseme_track(x, PAST_FRAMES + frames, manner)[PAST_FRAMES:] for x in (spoken, other))
    average = viseme_track(spoken, PAST_FRAMES + frames, Manner())[PAST_FRAMES:]
    shown = rest_track(frames) if rng.random() < 0.2 else elsewhere

    camera, recording = Camera.random(rng, harshness=rng.uniform(0.3, 1.4)), Recording.random(rng)
    skin, hair = (shot.colour(x) for x in (person.look.skin, person.look.hair))
    occluder = random_occluder(rng, skin, hair)
    wander = detector_error(frames + 1, rng)
    finder = FaceFinder(shot, backdrop)

    def render(
        moment: int, pose: Pose, mouths: list[tuple[VisemeTrack, int]], where: FaceFinder
    ) -> list[NDArray[np.uint8]]:
        shapes = [shot.place(visemes.units(frame, manner), pose) for visemes, frame in mouths]
        to_canvas, _ = where.align(shapes[0], pose)
        to_crop = crop_matrix((wander[moment] @ square(to_canvas))[:2], size, box)
        layers = [shot.render(shape, to_crop, (size, size)) for shape in shapes]
        fineness = layers[0].fineness
        behind = backdrop.seen(finer(to_crop, fineness), layers[0].coverage.shape)
        pictures = [shot.develop(layer, behind) for layer in layers]
        return [occluder.hold(picture, moment) for picture in pictures] if occluder else pictures

    pairs = [render(f, track[f], [(mouth, f), (shown, f)], finder) for f in range(frames)]
    # In a long video the first frame rarely resembles the current one.
    pose = track[0] if rng.random() < 0.35 else track[int(rng.integers(frames, len(track)))]
    identity = render(frames, pose, [(elsewhere, int(rng.integers(frames)))], FaceFinder(shot, backdrop))
    recordings = (recording.milder(), recording, recording)
    target, reference, still = (
        recorded.record([camera.shoot(picture, rng) for picture in pictures])
        for recorded, pictures in zip(recordings, (*zip(*pairs, strict=True), identity), strict=True)
    )
    audio = said.recorded[: past + samples + SAMPLES_AFTER]
    return RenderedClip(target, reference, still[0], audio, average.mouth, shown.mouth, average)


def render_video(
    rng: np.random.Generator,
    said: Talk | float,
    size: tuple[int, int] = (320, 384),
    movement: float = 1.0,
    manner: Manner | None = None,
) -> RenderedVideo:
    """A video of a random person; the face is about half of its height.

    Args:
        said: what the person says, or for how many seconds.
        size: (height, width). movement: see `pose_track`. manner: how the person speaks; random if None.
    """
    person = Person(rng)
    shot = Shot(person, Light.random(rng), rng)
    manner = manner or Manner.random(rng)
    said = said if isinstance(said, Talk) else talk(said, rng)
    frames = len(said.clean) // SAMPLES_PER_FRAME
    visemes = viseme_track(said.segments, frames, manner)
    height, width = size
    zoom = rng.uniform(0.45, 0.51) * height / 215  # a face is about 215 picture units high
    to_image = np.array([[zoom, 0, width * rng.uniform(0.47, 0.53)], [0, zoom, height * 0.5]])
    backdrop = Backdrop(rng, density=zoom)
    behind = backdrop.seen(finer(to_image, 2), (2 * height, 2 * width))
    camera = Camera.random(rng, harshness=0.3)
    pictures = np.empty((frames, height, width, 3), np.uint8)
    lips = np.empty((frames, 6, 2))
    for f, pose in enumerate(pose_track(frames, rng, movement)):
        shape = shot.place(visemes.units(f, manner), pose)
        pictures[f] = camera.shoot(shot.develop(shot.render(shape, to_image, size), behind), rng)
        lips[f] = shot.project(shape[lip_vertices()]) @ to_image[:, :2].T + to_image[:, 2]
    return RenderedVideo(pictures, said.clean[: frames * SAMPLES_PER_FRAME], visemes, lips)
