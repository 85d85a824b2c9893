"""The 468 landmarks of one face: FaceMesh on an upright square around it, and measurements on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..media.picture import Image, Picture, as_picture
from .detector import Face
from .models import net_for

_SIZE = 192
_MARGIN = 1.5  # side of the square over that of the face's box, as in the network's training

_LEFT_EYE, _RIGHT_EYE = 33, 263  # outer corners, left and right in the picture
_INNER_LIPS = ((82, 87), (13, 14), (312, 317))  # (upper, lower), around the middle


@dataclass(frozen=True)
class Roi:
    """A square around a face, rotated with it: centre (x, y) and side in pixels, angle in radians (clockwise)."""

    x: float
    y: float
    side: float
    angle: float

    @classmethod
    def of_face(cls, face: Face) -> Roi:
        left, right = face.keypoints[0], face.keypoints[1]
        side = float((face.box[2:] - face.box[:2]).max()) * _MARGIN
        return cls(float(face.centre[0]), float(face.centre[1]), side, math.atan2(*(right - left)[::-1]))

    @classmethod
    def of_landmarks(cls, landmarks: NDArray[np.float32]) -> Roi:
        angle = math.atan2(*(landmarks[_RIGHT_EYE, :2] - landmarks[_LEFT_EYE, :2])[::-1])
        cos, sin = math.cos(angle), math.sin(angle)
        upright = landmarks[:, :2] @ np.array([[cos, -sin], [sin, cos]])
        low, high = upright.min(axis=0), upright.max(axis=0)
        x, y = np.array([[cos, -sin], [sin, cos]]) @ ((low + high) / 2)
        return cls(float(x), float(y), float((high - low).max()) * _MARGIN, angle)

    def matrix(self) -> NDArray[np.float64]:
        """float64 [2, 3], frame pixels -> network pixels (pixel centres)."""
        zoom = _SIZE / self.side
        cos, sin = zoom * math.cos(self.angle), zoom * math.sin(self.angle)
        middle = (_SIZE - 1) / 2
        return np.array(
            [[cos, sin, middle - cos * self.x - sin * self.y], [-sin, cos, middle + sin * self.x - cos * self.y]]
        )


class FaceMesh:
    """Landmarks of one face. Not thread-safe: use one per thread. About 2.5 ms a call on one core."""

    def __init__(self) -> None:
        self._net = net_for(self, "face_landmark", ("conv2d_20", "conv2d_30"))

    def landmarks(self, frame: Picture | Image, where: Face | Roi) -> tuple[NDArray[np.float32], float]:
        """Landmarks and presence of the face at `where`.

        Args:
            frame: a picture, or uint8 [H, W, 3] RGB.
            where: a detected face, or the square that earlier landmarks give (`Roi.of_landmarks`).

        Returns:
            float32 [468, 3]: x, y in frame pixels (pixel centres, may lie outside the frame), z towards the back in
            the same unit; and the probability in [0, 1] that there is a face.

        Raises:
            ConfigError: `frame` is neither.
        """
        roi = where if isinstance(where, Roi) else Roi.of_face(where)
        matrix = roi.matrix()
        image = as_picture(frame).view(matrix, _SIZE, _SIZE)
        self._net.setInput(cv2.dnn.blobFromImage(image, 1 / 255))
        points, presence = self._net.forward(("conv2d_20", "conv2d_30"))
        points = points.reshape(-1, 3).astype(np.float64)
        inverse = cv2.invertAffineTransform(matrix)
        # Without an offset: measured on mirrored pictures, the network's coordinates are those of pixel centres.
        flat = points[:, :2] @ inverse[:, :2].T + inverse[:, 2]
        depth = points[:, 2:] * (roi.side / _SIZE)
        score = 1 / (1 + math.exp(-min(80.0, max(-80.0, float(presence.item())))))
        return np.hstack([flat, depth]).astype(np.float32), score


def bounding_box(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [4], x0, y0, x1, y1 of landmarks [N, 2 or 3]."""
    return np.concatenate([landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)])


def lip_gap(landmarks: NDArray[np.float32]) -> float:
    """How far the mouth is open: the gap between the inner lips over the distance of the outer eye corners.

    Measured across the eye line, so that it does not change when the head tilts sideways; the mean of three places
    around the middle of the mouth. 0 when closed, about 0.3 when wide open.

    Args:
        landmarks: FaceMesh landmarks, [468, 2 or 3].
    """
    points = landmarks[:, :2].astype(np.float64)
    eyes = points[_RIGHT_EYE] - points[_LEFT_EYE]
    span = float(np.hypot(*eyes))
    if span == 0:
        return 0.0
    upper, lower = (points[list(side)].mean(axis=0) for side in zip(*_INNER_LIPS, strict=True))
    down = np.array([-eyes[1], eyes[0]]) / span
    return max(0.0, float((lower - upper) @ down) / span)
