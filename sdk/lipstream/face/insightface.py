"""Faces as the released system finds them: InsightFace's detector and 106 points, with the user's copy of its models.

The library is under the MIT licence, but its models (buffalo_l: `det_10g.onnx`, `2d106det.onnx`) are for non-commercial
research only. LipStream neither installs nor downloads them, and uses them only with `FaceOptions.insightface`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, MissingExtraError
from ..media.picture import Picture
from .tracking import Policy, Seen, Tracker

# Of the 106 points: the upper edge of each brow; and bridge, both wings and tip of the nose.
_LEFT_BROW = (43, 48, 49, 51, 50)
_RIGHT_BROW = (101, 102, 103, 104, 105)
_NOSE = (74, 77, 83, 86)
_LEAST_WIDTH, _LEAST_HEIGHT, _LEAST_SCORE = 50, 80, 0.5
_RATIOS = 0.2, 1.5  # width over height


class InsightFaceTracker(Tracker):
    """Detects the face in each frame as the released system does: the largest, or the nearest to its last position.

    Reproduces the training inputs of the checkpoints, with their defects: the network gets RGB although it expects BGR,
    points are rounded to whole pixels, and only the nose is smoothed (`Aligner`). Landmarks are float32 [106, 2].

    Args:
        models: folder with the two networks. policy, select, max_hold, cuts: as of `FaceTracker`.

    Raises:
        MissingExtraError: the package `insightface` is not installed.
        ConfigError: the folder does not hold its models.
    """

    def __init__(
        self,
        models: str | os.PathLike[str],
        policy: Policy = "hold",
        select: Literal["largest"] | tuple[float, float] | None = "largest",
        *,
        max_hold: int = 60,
        cuts: bool = True,
    ) -> None:
        super().__init__(policy, select, max_hold=max_hold, smooth=False, cuts=cuts)
        self._analysis = _open(Path(models))
        self._place: tuple[float, float] | None = None

    def _see(self, frame: Picture) -> Seen | None:
        faces = [face for face in self._analysis.get(frame.rgb) if _plausible(face)]
        if not faces:
            return None
        if self._last is None:
            self._place = self._point
        if self._place is None:
            face = max(faces, key=lambda face: float(np.prod(face.bbox[2:] - face.bbox[:2])))
        else:
            x, y = self._place
            face = min(faces, key=lambda face: math.hypot(_centre(face)[0] - x, _centre(face)[1] - y))
            self._place = _centre(face)
        landmarks = np.rint(face.landmark_2d_106).astype(np.float32)
        return landmarks, float(face.det_score), np.rint(released_points(landmarks))


def released_points(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """The released system's alignment points, float64 [3, 2] (left brow, right brow, nose), of [106, 2] landmarks."""
    groups = (_LEFT_BROW, _RIGHT_BROW, _NOSE)
    return np.stack([landmarks[list(group)].mean(axis=0, dtype=np.float64) for group in groups])


def _open(models: Path) -> Any:
    try:
        from insightface.app import FaceAnalysis
    except ImportError as error:
        raise MissingExtraError(
            f"InsightFace's face detection needs the module {error.name!r}, which is not installed",
            fix="pip install insightface",
        ) from error
    expected = "a folder with det_10g.onnx and 2d106det.onnx (buffalo_l; for non-commercial research only)"
    if not models.is_dir():  # the library would try to download it
        raise ConfigError(f"no folder of InsightFace's models at {models}", expected=expected)
    wanted = ["detection", "landmark_2d_106"]
    try:
        analysis = FaceAnalysis(str(models), allowed_modules=wanted, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = f"{type(error).__name__} {error}".strip()
        raise ConfigError(f"{models} does not hold InsightFace's models: {reason}", expected=expected) from error
    if missing := [name for name in wanted if name not in analysis.models]:
        raise ConfigError(f"{models} lacks the models for {', '.join(missing)}", expected=expected)
    analysis.prepare(ctx_id=-1, det_thresh=_LEAST_SCORE, det_size=(512, 512))
    return analysis


def _centre(face: Any) -> tuple[float, float]:
    x0, y0, x1, y1 = (float(x) for x in face.bbox[:4])
    return (x0 + x1) / 2, (y0 + y1) / 2


def _plausible(face: Any) -> bool:
    width, height = (float(x) for x in face.bbox[2:] - face.bbox[:2])
    big = width >= _LEAST_WIDTH and height >= _LEAST_HEIGHT
    return big and _RATIOS[0] <= width / height <= _RATIOS[1] and float(face.det_score) >= _LEAST_SCORE
