"""Pictures with a known face, for the tests of the face stage."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

#: Middle of the face in `portrait()`, in pixels; as all of these read off by eye, to about 3 pixels.
CENTRE = (142.0, 118.0)
LEFT_EYE, RIGHT_EYE, NOSE, MOUTH = (123.0, 101.0), (166.0, 103.0), (143.0, 127.0), (145.0, 146.0)


def portrait() -> Picture:
    """uint8 [288, 288, 3] RGB, one face."""
    bgr = cv2.imread(str(Path(__file__).parent / "data" / "portrait.jpg"))
    assert bgr is not None
    return np.ascontiguousarray(bgr[..., ::-1])


def placed(matrix: NDArray[np.float64], width: int, height: int) -> Picture:
    """The portrait through `matrix` [2, 3] on a grey background of width x height."""
    shrink = 1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    source = portrait()
    if shrink > 1:
        source = np.asarray(cv2.GaussianBlur(source, (0, 0), 0.4 * shrink), np.uint8)
    grey = (128, 128, 128)
    picture = cv2.warpAffine(source, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=grey)
    return np.asarray(picture, np.uint8)


def similarity(scale: float, degrees: float, x: float, y: float) -> NDArray[np.float64]:
    """Takes the middle of the portrait's face to (x, y), turned clockwise by `degrees` and scaled."""
    angle = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, np.array([x, y]) - linear @ CENTRE])


def noisy(picture: Picture, seed: int, sigma: float = 4.0) -> Picture:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)
