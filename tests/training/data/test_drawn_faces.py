"""Drawn faces: repeatable, with a mouth that opens where its landmarks say, and still everywhere else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from lipstream_training.data.camera import Camera
from lipstream_training.data.clips import crop_matrix
from lipstream_training.data.faces import FacePainter, Pose, pose_track
from lipstream_training.data.identity import Identity
from lipstream_training.data.lips import MOVING, MouthShape

CANVAS = np.array([[1.0, 0, 210], [0, 1.0, 0]])  # face units -> canvas
SIZE = 128
TO_CROP = crop_matrix(CANVAS, SIZE)


def face(seed: int) -> FacePainter:
    return FacePainter(Identity.random(np.random.default_rng(seed)), density=0.5)


def draw(painter: FacePainter, pose: Pose, *mouths: MouthShape) -> list[np.ndarray]:
    return painter.render(pose, mouths, TO_CROP, (SIZE, SIZE))


def test_same_person_same_picture_and_another_person_another() -> None:
    pose = Pose(x=4, yaw=0.1, roll=0.05)
    first, again = (draw(face(3), pose, MouthShape(0.5))[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - draw(face(4), pose, MouthShape(0.5))[0]).mean() > 5


@pytest.mark.parametrize("seed", range(6))
def test_only_the_surroundings_of_the_mouth_move(seed: int) -> None:
    painter, pose = face(seed), Pose()
    closed, wide, spread = draw(painter, pose, MouthShape(), MouthShape(1, 0, 0.3, 0.5), MouthShape(0.3, 1, 1, 1))
    left, top, right, bottom = MOVING
    corners = np.array([[left, top], [right, bottom]]) @ TO_CROP[:, :2].T + TO_CROP[:, 2]
    (x0, y0), (x1, y1) = np.floor(corners[0]).astype(int) - 1, np.ceil(corners[1]).astype(int) + 1
    outside = np.ones((SIZE, SIZE), bool)
    outside[y0 : y1 + 1, x0 : x1 + 1] = False
    for other in (wide, spread):
        difference = np.abs(closed.astype(int) - other).max(-1)
        assert difference[outside].max() == 0
        assert difference[~outside].max() > 20


@pytest.mark.parametrize("seed", range(6))
def test_the_dark_of_the_mouth_grows_with_the_opening(seed: int) -> None:
    """Pixels at least a fifth, and at least half, darker than the same place of the closed mouth."""
    closed, *others = (p.astype(int).sum(-1) for p in draw(face(seed), Pose(), *map(MouthShape, np.linspace(0, 1, 6))))
    for share in (0.2, 0.5):
        areas = [int((closed - other > share * closed).sum()) for other in others]
        assert areas == sorted(areas)
        assert areas[-1] > 1.5 * areas[1] + 20


def test_aperture_lies_where_the_landmarks_say() -> None:
    """The centroid of what opening changes most is between the landmarks of the inner lips."""
    for seed in range(5):
        painter, pose, mouth = face(seed), Pose(x=10, y=-6, roll=0.08, yaw=0.1), MouthShape(0.9)
        closed, wide = draw(painter, pose, MouthShape(), mouth)
        change = cv2.GaussianBlur(np.abs(closed.astype(np.float32) - wide).sum(-1), (0, 0), 2)
        inner = painter.lip_points(pose, mouth)[3:5] @ TO_CROP[:, :2].T + TO_CROP[:, 2]
        row, column = np.unravel_index(int(change.argmax()), change.shape)
        assert inner[0, 1] - 6 < row < inner[1, 1] + 10
        assert abs(column - inner[:, 0].mean()) < 16


def test_landmarks_follow_the_pose() -> None:
    painter = face(1)
    rest = painter.landmarks3(Pose())
    assert np.allclose(painter.landmarks3(Pose(x=7, y=-3)), rest - (-7, 3))
    turned = painter.landmarks3(Pose(yaw=0.15))
    assert turned[2, 0] - rest[2, 0] > turned[:2, 0].mean() - rest[:2, 0].mean() > 0  # the nose leads
    assert rest[0, 0] < rest[2, 0] < rest[1, 0]
    assert rest[2, 1] > rest[:2, 1].max()


def test_blink_closes_the_eyes_only() -> None:
    painter = face(2)
    awake, asleep = (draw(painter, Pose(blink=b), MouthShape())[0].astype(int) for b in (0, 1))
    rows = np.flatnonzero(np.abs(awake - asleep).max((1, 2)) > 3)
    eye = painter.person.eye_y * SIZE / 560
    assert rows.size
    assert eye - 14 < rows[0] < rows[-1] < eye + 14


def test_poses_are_smooth_and_small() -> None:
    poses = pose_track(200, np.random.default_rng(0))
    track = np.array([(p.x, p.y, 100 * p.scale, 100 * p.roll, 100 * p.yaw, 100 * p.pitch) for p in poses])
    assert np.abs(np.diff(track, axis=0)).max() < 4
    assert max(p.blink for p in poses) == 1
    assert min(p.blink for p in poses) == 0


def test_a_gentle_camera_keeps_the_picture() -> None:
    picture = draw(face(5), Pose(), MouthShape())[0]
    rng = np.random.default_rng(1)
    assert np.abs(Camera.random(rng, harshness=0).shoot(picture, rng).astype(int) - picture).max() <= 1
    shot = Camera.random(np.random.default_rng(3)).shoot(picture, rng)
    assert shot.shape == picture.shape
    assert shot.dtype == np.uint8
