"""Where the face is on a rendered picture, found as in the SDK: FaceMesh, its alignment points, the aligner."""

from __future__ import annotations

import cv2
import numpy as np
from lipstream.face import Aligner, FaceMesh, Roi, alignment_points
from numpy.typing import NDArray

from ..faces import Pose
from .backdrop import Backdrop
from .geometry import Vertices
from .shot import Shot, finer

_SIDE = 128  # pixels of the picture that is searched
_SPAN = 320.0  # picture units that it shows; a face is about 200 high
_FACE = np.array([[0.0, 6.95, 1.1]])  # the middle of the resting face, decimetres


class FaceFinder:
    """Alignment of one rendered face through a clip; the frames come in order."""

    def __init__(self, shot: Shot, backdrop: Backdrop) -> None:
        self._shot, self._backdrop = shot, backdrop
        self._mesh, self._aligner = FaceMesh(), Aligner()
        self._where: Roi | None = None  # on the picture that is searched, which follows the head

    def landmarks(self, vertices: Vertices, pose: Pose) -> tuple[NDArray[np.float32], float]:
        """FaceMesh landmarks [468, 2] in picture units, and the probability of a face."""
        view = self._view(pose)
        fine = finer(view, 1)
        layer = self._shot.render(vertices, view, (_SIDE, _SIDE), fineness=1)
        picture = self._shot.develop(layer, self._backdrop.seen(fine, (_SIDE, _SIDE)))
        if self._where is None:
            middle = (_SIDE - 1) / 2
            first, _ = self._mesh.landmarks(picture, Roi(middle, middle, _SIDE * 0.9, pose.roll))
            self._where = Roi.of_landmarks(first)
        found, presence = self._mesh.landmarks(picture, self._where)
        self._where = Roi.of_landmarks(found)
        back = cv2.invertAffineTransform(view)
        return (found[:, :2] @ back[:, :2].T + back[:, 2]).astype(np.float32), presence

    def align(self, vertices: Vertices, pose: Pose) -> tuple[NDArray[np.float64], float]:
        """Picture units -> canvas, float64 [2, 3], and the probability that there is a face."""
        landmarks, presence = self.landmarks(vertices, pose)
        return self._aligner.solve(alignment_points(landmarks)), presence

    def _view(self, pose: Pose) -> NDArray[np.float64]:
        """Picture units -> pixels of a picture around the face."""
        across, down = pose.x / 110 + pose.yaw * 0.5, -pose.y / 110 - pose.pitch * 0.5
        x, y = self._shot.project(_FACE + np.array([across, down, 0]))[0]
        zoom = _SIDE / _SPAN
        return np.array([[zoom, 0, (_SIDE - 1) / 2 - zoom * x], [0, zoom, (_SIDE - 1) / 2 - zoom * y]])
