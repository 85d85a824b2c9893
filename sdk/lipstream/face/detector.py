"""Face detection: BlazeFace on one view of the frame, or on many views if the faces are small.

The networks are Google's TFLite files, run by OpenCV, which needs no TensorFlow and matches TFLite to 1e-6 of the
output range. A call takes about 2.5 ms (short range) or 7 ms (full range) on one core. The short-range network is
reliable for faces that fill the view, the full-range one finds faces down to a twentieth of its side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from ..media.picture import Image, Picture, as_picture
from .models import net_for

#: Order of `Face.keypoints`; left and right are those of the picture.
KEYPOINTS = ("left eye", "right eye", "nose tip", "mouth", "left ear", "right ear")

#: Score above which a detection is almost never wrong.
SURE = 0.7

_OVERVIEW = 384  # longer side, in pixels, to which a whole frame is reduced
_SMALLEST_TILE = 320


@dataclass(frozen=True)
class Face:
    """A detected face. Coordinates are pixel centres of the frame and may lie outside it.

    Attributes:
        box: float32 [4], x0, y0, x1, y1: brows to chin, ear to ear.
        score: confidence in [0, 1].
        keypoints: float32 [6, 2], (x, y) in the order of KEYPOINTS.
    """

    box: NDArray[np.float32]
    score: float
    keypoints: NDArray[np.float32]

    @property
    def centre(self) -> NDArray[np.float32]:
        return (self.box[:2] + self.box[2:]) * np.float32(0.5)

    @property
    def area(self) -> float:
        return float(np.prod(self.box[2:] - self.box[:2]))


@dataclass(frozen=True)
class _View:
    """A square part of the frame, its top left corner and its side in pixels; may extend beyond the frame."""

    x: float
    y: float
    side: float


class _BlazeFace:
    """One SSD network: a square view -> boxes, scores and keypoints of every anchor."""

    def __init__(self, name: str, outputs: tuple[str, str], size: int, anchors: NDArray[np.float32]) -> None:
        self._outputs, self._size, self._anchors = outputs, size, anchors
        self._net = net_for(self, name, outputs)

    def __call__(self, frame: Picture, view: _View, min_score: float) -> list[tuple[NDArray[np.float32], float]]:
        """Points [8, 2] in frame pixels (box corners, keypoints) and score of each anchor that detects a face."""
        zoom = self._size / view.side
        matrix = np.array([[zoom, 0, (0.5 - view.x) * zoom - 0.5], [0, zoom, (0.5 - view.y) * zoom - 0.5]])
        image = frame.view(matrix, self._size, self._size, border=False)
        self._net.setInput(cv2.dnn.blobFromImage(image, 1 / 127.5, mean=(127.5, 127.5, 127.5)))
        logits, regressed = self._net.forward(self._outputs)
        scores = 1 / (1 + np.exp(-np.clip(logits.reshape(-1), -80, 80)))
        hits = np.flatnonzero(scores >= min_score)
        points = regressed.reshape(-1, 8, 2)[hits] / self._size
        points[:, 0] += self._anchors[hits]
        points[:, 2:] += self._anchors[hits, None]
        half = points[:, 1] / 2
        points[:, 1] = points[:, 0] + half
        points[:, 0] -= half
        points = points * view.side + np.array([view.x, view.y]) - 0.5
        return [(p, float(s)) for p, s in zip(points.astype(np.float32), scores[hits], strict=True)]


class FaceDetector:
    """Finds the faces of single frames. Not thread-safe: use one per thread.

    Args:
        min_score: confidence in [0, 1] below which a detection is dropped.
    """

    def __init__(self, min_score: float = 0.5) -> None:
        self.min_score = min_score
        self._short = _BlazeFace(
            "face_detection_short_range", ("classificators", "regressors"), 128, _anchors(128, ((8, 2), (16, 6)))
        )
        self._full = _BlazeFace(
            "face_detection_full_range",
            ("reshaped_classifier_face_4", "reshaped_regressor_face_4"),
            192,
            _anchors(192, ((4, 1),)),
        )

    def detect(self, frame: Picture | Image, closely: Sequence[tuple[float, float, float]] = ()) -> list[Face]:
        """Faces of `frame`: sure ones before doubtful ones, larger before smaller; may be empty.

        Args:
            frame: a picture, or uint8 [H, W, 3] RGB, of any size.
            closely: squares (centre x, centre y, side in pixels) to search, too, for small faces beside larger ones.

        Raises:
            ConfigError: `frame` is neither.
        """
        found: list[Face] = []
        for faces in self.search(frame, closely):
            if faces and faces[0].score >= SURE:
                return faces
            found = found or faces
        return found

    def search(
        self, frame: Picture | Image, closely: Sequence[tuple[float, float, float]] = ()
    ) -> Iterator[list[Face]]:
        """Yield the faces found in each search (see `detect`): of the whole frame, then of smaller and smaller tiles.

        In 4K the first search takes about 20 ms, each further one 50 to 150 ms; iterate no further than needed.
        """
        frame = as_picture(frame)
        height, width = frame.height, frame.width
        side = float(max(height, width))
        whole = _View((width - side) / 2, (height - side) / 2, side)
        block = max(1, max(height, width) // _OVERVIEW)
        overview = _overview(frame, block)
        found = []
        for net in (self._short, self._full):
            for points, score in net(overview, _View(whole.x / block, whole.y / block, side / block), self.min_score):
                found.append((points * block + np.float32((block - 1) / 2), score))
        for x, y, close in closely:
            found += self._full(frame, _View(x - close / 2, y - close / 2, close), self.min_score)
        yield _distinct(found)
        while (side := side / 2) >= _SMALLEST_TILE:
            found = []
            for view in _tiles(width, height, side):
                found += self._full(frame, view, self.min_score)
            yield _distinct(found)

    def confirm(self, frame: Picture, box: NDArray[np.float32]) -> bool:
        """Whether a face is still visible at `box` (x0, y0, x1, y1): one cheap detection around it."""
        side = 2 * float((box[2:] - box[:2]).max())
        x, y = (box[:2] + box[2:]) / 2 - side / 2
        return any(overlap(face.box, box) > 0.2 for face in _distinct(self._short(frame, _View(x, y, side), 0.3)))


def _overview(frame: Picture, block: int) -> Picture:
    """`frame` averaged over block x block pixels; a remainder at the right and bottom is dropped."""
    if block == 1:
        return frame
    zoom = np.array([[1 / block, 0, (1 / block - 1) / 2], [0, 1 / block, (1 / block - 1) / 2]])
    return Picture.of(frame.view(zoom, max(1, frame.width // block), max(1, frame.height // block)))


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1), in [0, 1]."""
    inner = float(np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)))
    outer = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - inner
    return inner / outer if outer > 0 else 0.0


def _anchors(size: int, strides: tuple[tuple[int, int], ...]) -> NDArray[np.float32]:
    """Anchor centres [N, 2] in [0, 1]: for each (stride, count) a grid with `count` anchors per cell."""
    grids = []
    for stride, count in strides:
        cells = size // stride
        y, x = np.mgrid[0:cells, 0:cells]
        grids.append(np.repeat((np.stack([x.ravel(), y.ravel()], 1) + 0.5) / cells, count, axis=0))
    return np.concatenate(grids).astype(np.float32)


def _tiles(width: int, height: int, side: float) -> list[_View]:
    """Squares of `side` that cover the frame and overlap by a quarter or more, so that each face is complete in one."""
    starts = []
    for length in (width, height):
        count = max(1, int(np.ceil((length - side) / (0.75 * side))) + 1)
        slack = length - side
        starts.append([slack / 2] if count == 1 else [slack * i / (count - 1) for i in range(count)])
    return [_View(x, y, side) for y, x in product(starts[1], starts[0])]


def _distinct(found: list[tuple[NDArray[np.float32], float]]) -> list[Face]:
    """Greedy non-maximum suppression by score; results are in the order of `FaceDetector.detect`."""
    kept: list[Face] = []
    for points, score in sorted(found, key=lambda item: -item[1]):
        face = Face(points[:2].reshape(4), score, points[2:])
        proper = face.box[0] < face.box[2] and face.box[1] < face.box[3]
        if proper and all(overlap(face.box, other.box) < 0.3 for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: (face.score < SURE, -face.area))
