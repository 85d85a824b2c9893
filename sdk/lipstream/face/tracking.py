"""Face tracking: the face is detected once, then followed with one landmark call per frame."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FaceNotFoundError
from ..media.picture import Image, Picture, as_picture
from .alignment import Aligner, alignment_points
from .detector import Face, FaceDetector, overlap
from .landmarks import FaceMesh, Roi, bounding_box
from .smooth import OneEuroFilter

Policy = Literal["hold", "bypass", "raise"]

_MIN_PRESENCE = 0.5  # presence by FaceMesh below which a tracked face is lost
_MIN_PRESENCE_NEW = 0.8  # presence by FaceMesh below which a detection is not a face
_CHECK_EVERY = 25  # frames between two detections while a face is tracked
_SEARCH_EVERY = 12  # frames between two searches in tiles while there is no face
_MIN_OVERLAP = 0.3  # intersection over union of the face's boxes in successive frames
_REACH_FRAMES = 25  # frames in which a lost face may move by one face size
_ALIKE = 0.75  # correlation with the face's last picture above which a face that is not found is still there
_SAME = 0.85  # likewise elsewhere; other people reach 0.75, the same one 0.84 to 1
_LEAST_CONTRAST = 0.4  # contrast over that of the face's last picture, likewise
_REACH = 1.5  # distance from the caller's point in sizes of the face, up to which a face is near it
_CUT = 30.0  # mean absolute difference in brightness (0..255) from which there is a scene cut
_SMALLEST_VIEW = 128


@dataclass(frozen=True)
class FaceObservation:
    """The face in one frame.

    Attributes:
        index: number of the frame, from 0.
        matrix: float64 [2, 3], similarity from frame pixels to the 420 x 560 canvas.
        landmarks: float32 [468, 3], x, y in frame pixels and depth; unsmoothed. (Of InsightFace [106, 2].)
        score: probability in [0, 1] that this is a face; if held, that of the last frame with the face.
        held: True if the face was not found in this frame and the last transform is used again.
        scene: number of times that a face was selected before, at the start, after a cut or when the last one was gone.
    """

    index: int
    matrix: NDArray[np.float64]
    landmarks: NDArray[np.float32]
    score: float
    held: bool = False
    scene: int = 0


Seen = tuple[NDArray[np.float32], float, NDArray[np.float64]]
"""Landmarks, score and the three alignment points of a face."""


class Tracker(ABC):
    """Tracks one face through a video; subclasses find it. Holds the state of one video; not thread-safe.

    Args:
        policy: result for a frame without the face. "hold": the last observation again, marked as held, for up to
            `max_hold` frames in a row, while the picture at that place still is similar to the face, and not beyond a
            cut; after that, and before the first face, None.
            "bypass": None, the frame is to be shown unchanged. "raise": FaceNotFoundError.
        select: "largest", or a point (x, y) in frame pixels on or near the wanted face; further away than 1.5 times its
            size, no face is taken.
        max_hold: frames; the default of 60 is 2.4 s.
        smooth: low-pass the alignment points over time (1-euro), to reduce the jitter of the landmarks.
        fps: frame rate, for the smoothing. cuts: whether a scene cut starts everything anew.

    Attributes:
        found: True once a face was found in a frame.

    Raises:
        ConfigError: an argument is not valid.
    """

    def __init__(
        self,
        policy: Policy = "hold",
        select: Literal["largest"] | tuple[float, float] | None = "largest",
        *,
        max_hold: int = 60,
        smooth: bool = True,
        fps: float = 25.0,
        cuts: bool = True,
    ) -> None:
        if policy not in get_args(Policy):
            raise ConfigError(f"face policy {policy!r}", expected="'hold', 'bypass' or 'raise'")
        if select not in ("largest", None) and not _is_point(select):
            raise ConfigError(f"face selection {select!r}", expected="'largest' or a point (x, y) in pixels")
        if max_hold < 0 or fps <= 0:
            raise ConfigError(f"max_hold {max_hold}, fps {fps}", expected="max_hold >= 0, fps > 0")
        self.policy, self.max_hold, self._cuts = policy, max_hold, cuts
        self.found = False
        self._point = None if isinstance(select, str) or select is None else (float(select[0]), float(select[1]))
        self._aligner = Aligner()
        self._filter = OneEuroFilter(rate=fps) if smooth else None
        self._index = -1
        self._last: FaceObservation | None = None  # the face's last position; None at the start and after a cut
        self._seen_in: Picture | None = None  # the picture of `_last`
        self._misses = self._scene = 0
        self._thumbnail: NDArray[np.float32] | None = None

    def track(self, frame: Picture | Image) -> FaceObservation | None:
        """The face in the next frame of the video; None if there is none (see `policy`).

        Args:
            frame: a picture, or uint8 [H, W, 3] RGB.

        Raises:
            ConfigError: the frame is neither.
            FaceNotFoundError: policy "raise", and no face in this frame.
        """
        frame = as_picture(frame)
        self._index += 1
        if self._is_cut(frame) and self._cuts:
            self._forget()
        seen = self._see(frame)
        if seen is None:
            return self._missed(frame)
        landmarks, score, points = seen
        if self._filter is not None:
            points = self._filter(points, unit=float(np.linalg.norm(points[1] - points[0])))
        self._scene += self._last is None and self.found
        matrix = self._aligner.solve(points)
        self._last, self._seen_in = FaceObservation(self._index, matrix, landmarks, score, scene=self._scene), frame
        self._misses, self.found = 0, True
        return self._last

    def reset(self) -> None:
        """Reset to the state before the first frame."""
        self._forget()
        self.found, self._index, self._scene, self._thumbnail = False, -1, 0, None

    @abstractmethod
    def _see(self, frame: Picture) -> Seen | None:
        """The wanted face in the next frame, None if it is not visible."""

    def _is_alike(self, frame: Picture, matrix: NDArray[np.float64], least: float = _ALIKE) -> bool:
        """Whether the picture at a place, by its `matrix`, is similar to the face where it was seen last."""
        if self._last is None or self._seen_in is None:
            return False
        before, now = _outline(self._seen_in, self._last.matrix), _outline(frame, matrix)
        alike = float((before * now).sum()) / max(1e-6, float(np.linalg.norm(before) * np.linalg.norm(now)))
        return alike > least and float(now.std()) > _LEAST_CONTRAST * float(before.std())

    def _missed(self, frame: Picture) -> FaceObservation | None:
        self._misses += 1
        if self._misses > self.max_hold:
            self._last = self._seen_in = None
        if self.policy == "raise":
            raise FaceNotFoundError(
                f"no face in frame {self._index}",
                frame=self._index,
                expected="a face in every frame, at least partly visible",
                fix="use the face policy 'hold' or 'bypass' for videos in which the face is hidden at times",
            )
        if self.policy == "hold" and self._last is not None and self._is_alike(frame, self._last.matrix):
            return replace(self._last, index=self._index, held=True)
        return None

    def _is_cut(self, frame: Picture) -> bool:
        thumbnail = frame.thumbnail()
        before, self._thumbnail = self._thumbnail, thumbnail
        if before is None or before.shape != thumbnail.shape:
            return before is not None
        return bool(np.abs(thumbnail - before).mean() > _CUT)

    def _forget(self) -> None:
        self._last, self._seen_in, self._misses = None, None, 0
        self._reset_smoothing()

    def _reset_smoothing(self) -> None:
        self._aligner.reset()
        if self._filter is not None:
            self._filter.reset()


class FaceTracker(Tracker):
    """Tracks one face with the networks shipped with LipStream.

    The face is selected in the first frame with a face: the largest, or the one nearest to a point. From then on the
    landmarks of a frame define the search region in the next one. The detector runs again when the landmarks lose the
    face, at a scene cut, and periodically for confirmation. A lost face is searched for near its last position, within
    a distance that grows with time, and further away if it looks the same there; after a cut, or `max_hold` frames, the
    face is selected again.

    Arguments and errors are those of `Tracker`.
    """

    def warmup(self) -> None:
        """Load the networks and run each once, so that the first frame takes no longer than the others."""
        grey = Picture.of(np.full((64, 64, 3), 127, np.uint8))
        self._detector.detect(grey)
        self._mesh.landmarks(grey, Roi(32.0, 32.0, 64.0, 0.0))

    @cached_property
    def _detector(self) -> FaceDetector:
        return FaceDetector()

    @cached_property
    def _mesh(self) -> FaceMesh:
        return FaceMesh()

    def _see(self, frame: Picture) -> Seen | None:
        found = self._follow(frame) or self._search(frame)
        if found is None:
            return None
        landmarks, score = found
        return landmarks, score, alignment_points(landmarks)

    def _follow(self, frame: Picture) -> tuple[NDArray[np.float32], float] | None:
        """The face at its position in the previous frame; None if it was not visible there or is not any more."""
        if self._last is None or self._misses:
            return None
        before = self._last.landmarks
        landmarks, score = self._mesh.landmarks(frame, Roi.of_landmarks(before))
        box = bounding_box(landmarks)
        if score < _MIN_PRESENCE or overlap(box, bounding_box(before)) < _MIN_OVERLAP or not _inside(box, frame):
            return None
        if self._index % _CHECK_EVERY == 0 and not self._detector.confirm(frame, box):
            return None
        return landmarks, score

    def _search(self, frame: Picture) -> tuple[NDArray[np.float32], float] | None:
        """The wanted face, from the detector."""
        last = self._last
        thorough = self._misses % _SEARCH_EVERY == 0 and (last is None or not self._is_alike(frame, last.matrix))
        for faces in self._detector.search(frame, self._views(frame)):
            near = self._candidates(faces)
            elsewhere = [face for face in faces if face not in near] if thorough and last is not None else []
            for face in near + elsewhere:
                rough, _ = self._mesh.landmarks(frame, face)
                landmarks, score = self._mesh.landmarks(frame, Roi.of_landmarks(rough))
                if score < _MIN_PRESENCE_NEW:
                    continue
                # The same face may have moved at once, as a tile of a video call does; another one is not taken for it.
                if face in near or self._is_alike(frame, Aligner().solve(alignment_points(landmarks)), _SAME):
                    self._reset_smoothing()
                    return landmarks, score
            if not thorough:
                break
        return None

    def _views(self, frame: Picture) -> list[tuple[float, float, float]]:
        """Squares (centre x, centre y, side) to search closely: around the last position, or the caller's point."""
        if self._last is not None:
            x, y, size = _place(bounding_box(self._last.landmarks))
            return [(x, y, 3 * size)]
        if self._point is not None:
            x, y = self._point
            longest = max(frame.width, frame.height)
            return [(x, y, longest / 2**level) for level in range(1, 6) if longest / 2**level > _SMALLEST_VIEW]
        return []

    def _candidates(self, faces: list[Face]) -> list[Face]:
        """The faces that may be the wanted one, the most likely first."""
        if self._last is not None:
            x, y, size = _place(bounding_box(self._last.landmarks))
            reach = size * (1 + self._misses / _REACH_FRAMES)
            near = [face for face in faces if _distance(face, x, y) < reach and 0.5 < _place(face.box)[2] / size < 2]
            return sorted(near, key=lambda face: _distance(face, x, y))
        if self._point is not None:
            x, y = self._point
            near = [face for face in faces if _distance(face, x, y) < _REACH * _place(face.box)[2]]
            return sorted(near, key=lambda face: _distance(face, x, y))
        return faces


def _place(box: NDArray[np.float32]) -> tuple[float, float, float]:
    """Centre x, centre y and longer side of a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0)


def _outline(picture: Picture, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32 [32, 24]: brightness of the face in outline, less its mean; `matrix` takes frame to canvas pixels."""
    view = picture.view(0.5 * matrix, 210, 280).astype(np.float32).mean(axis=2)
    small = np.asarray(cv2.resize(view, (24, 32), interpolation=cv2.INTER_AREA), np.float32)
    return np.asarray(small - small.mean(), np.float32)


def _distance(face: Face, x: float, y: float) -> float:
    return math.hypot(float(face.centre[0]) - x, float(face.centre[1]) - y)


def _inside(box: NDArray[np.float32], frame: Picture) -> bool:
    """Whether the middle of `box` lies in the frame."""
    x, y, _ = _place(box)
    return bool(0 <= x < frame.width and 0 <= y < frame.height)


def _is_point(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    )
