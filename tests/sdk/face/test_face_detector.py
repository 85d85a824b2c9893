"""Detector and landmarks on a real portrait at known positions."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from lipstream.errors import ConfigError
from lipstream.face import FaceDetector, FaceMesh, Roi, lip_gap
from lipstream.face.detector import KEYPOINTS
from portraits import LEFT_EYE, MOUTH, NOSE, RIGHT_EYE, Picture, placed, portrait, similarity


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


def test_finds_the_face_and_its_keypoints(detector: FaceDetector) -> None:
    (face,) = detector.detect(portrait())
    assert face.score > 0.8
    x0, y0, x1, y1 = face.box
    assert x0 < LEFT_EYE[0] < RIGHT_EYE[0] < x1
    assert y0 < LEFT_EYE[1] < MOUTH[1] < y1
    named = dict(zip(KEYPOINTS, face.keypoints, strict=True))
    known = {"left eye": LEFT_EYE, "right eye": RIGHT_EYE, "nose tip": NOSE, "mouth": MOUTH}
    for name, place in known.items():
        assert np.linalg.norm(named[name] - place) < 8, name


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(40, 40, 0.3), (176, 144, 0.6), (720, 1280, 3.0), (3840, 2160, 0.5)],
)
def test_finds_faces_of_every_size(detector: FaceDetector, width: int, height: int, scale: float) -> None:
    x, y = width * 0.5, height * 0.6
    frame = placed(similarity(scale, 0, x, y), width, height)
    (face,) = [face for face in detector.detect(frame) if face.score > 0.7]
    assert np.linalg.norm(face.centre - (x, y)) < 20 * scale


def test_searches_the_given_squares(detector: FaceDetector) -> None:
    """A small face beside a large one is found only in a square around it."""
    frame = placed(similarity(6.0, 0, 1000, 1000), 3840, 2160)
    small = placed(similarity(0.4, 0, 3300, 300), 3840, 2160)
    frame[:700, 2900:] = small[:700, 2900:]
    assert all(face.centre[0] < 2000 for face in detector.detect(frame))
    faces = detector.detect(frame, closely=[(3250.0, 320.0, 480.0)])
    assert any(np.linalg.norm(face.centre - (3300, 300)) < 15 for face in faces)
    assert faces[0].centre[0] < 2000, "largest first"


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 900, 3), (700, 3, 3), (480, 640, 3)])
def test_finds_nothing_where_there_is_nothing(detector: FaceDetector, shape: tuple[int, int, int]) -> None:
    assert detector.detect(np.full(shape, 90, np.uint8)) == []


@pytest.mark.parametrize(
    "frame",
    [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 3)), np.zeros((0, 9, 3), "u1")],
)
def test_rejects_invalid_frames(detector: FaceDetector, mesh: FaceMesh, frame: Picture) -> None:
    with pytest.raises(ConfigError):
        detector.detect(frame)
    with pytest.raises(ConfigError):
        mesh.landmarks(frame, Roi(32, 32, 64, 0))


@pytest.mark.parametrize("degrees", [-30, 0, 30])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_landmarks_move_with_the_face(detector: FaceDetector, mesh: FaceMesh, degrees: float, scale: float) -> None:
    original, presence = mesh.landmarks(portrait(), detector.detect(portrait())[0])
    assert presence > 0.99
    assert original.shape == (468, 3)
    for index, place in ((1, NOSE), (13, MOUTH)):
        assert np.linalg.norm(original[index, :2] - place) < 7
    matrix = similarity(scale, degrees, 300, 280)
    frame = placed(matrix, 640, 560)
    landmarks, presence = mesh.landmarks(frame, detector.detect(frame)[0])
    landmarks, presence = mesh.landmarks(frame, Roi.of_landmarks(landmarks))
    assert presence > 0.99
    expected = original[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(landmarks[:, :2] - expected).mean() < 2.0 * scale


def test_presence_is_low_without_a_face(mesh: FaceMesh) -> None:
    background = portrait()[200:280, :80]
    assert mesh.landmarks(np.asarray(cv2.resize(background, (300, 300)), np.uint8), Roi(150, 150, 200, 0))[1] < 0.5


def test_lip_gap_measures_the_opening_alone() -> None:
    landmarks = np.zeros((468, 3), np.float32)
    landmarks[33, :2], landmarks[263, :2] = (100, 100), (200, 100)
    for upper, lower in ((82, 87), (13, 14), (312, 317)):
        landmarks[upper, :2], landmarks[lower, :2] = (150, 180), (150, 200)
    assert lip_gap(landmarks) == pytest.approx(0.2)
    angle = np.deg2rad(35)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    turned = landmarks.copy()
    turned[:, :2] = 3 * landmarks[:, :2] @ turn.T + np.array([-40, 900], np.float32)
    assert lip_gap(turned) == pytest.approx(0.2, rel=1e-4)
    landmarks[[87, 14, 317], 1] = 179
    assert lip_gap(landmarks) == 0.0
    assert lip_gap(np.zeros((468, 2), np.float32)) == 0.0
