"""Alignment: three points of a face -> the similarity that maps it upright onto the 420 x 560 canvas, and the crop.

The canvas, its three template points and the smoothing are those the released Lip Forcing checkpoints were trained
with (LatentSync's aligner). Coordinates are those of pixel centres: (0, 0) is the middle of the top left pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import CANVAS_HEIGHT, CANVAS_WIDTH
from ..errors import ConfigError
from ..media.picture import Image, Picture, as_picture

Matrix = NDArray[np.float64]
"""float64 [2, 3], frame pixels -> canvas pixels."""
Crop = NDArray[np.float32] | NDArray[np.uint8]
"""[S, S, 3], RGB, float32 in [0, 1] or uint8: a crop as generated."""

#: Positions (x, y) of the left brow, the right brow and the nose on the canvas.
TEMPLATE: NDArray[np.float64] = np.array([(17, 20), (58, 20), (37.5, 40)], np.float64) * 5.6

_BIAS_OLD, _BIAS_NEW = np.float32(0.2), np.float32(0.8)

# FaceMesh indices of the points that insightface's 106-point model averages for the same purpose: the upper edge of
# each brow, and lower bridge, tip and both wings of the nose. Left and right are those of the picture.
_LEFT_BROW = (70, 63, 105, 66, 107)
_RIGHT_BROW = (300, 293, 334, 296, 336)
_NOSE = (195, 4, 129, 358)


def alignment_points(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Three alignment points, float64 [3, 2] (left brow, right brow, nose), of FaceMesh landmarks [468, 2 or 3]."""
    groups = (_LEFT_BROW, _RIGHT_BROW, _NOSE)
    return np.stack([landmarks[list(group), :2].mean(axis=0, dtype=np.float64) for group in groups])


class Aligner:
    """Computes a 2 x 3 similarity (source pixels -> canvas pixels) from three points per frame, for one video.

    The similarity is Umeyama's without its weighting of the axes: both point sets are centred and divided by their
    standard deviation over all six scalars, the rotation comes from an SVD of their covariance. It cannot map
    all three points exactly; its error at the nose is low-passed over time and added to the translation.

    Attributes:
        bias: float32 [2], the low-passed nose residual in normalised units; None before the first frame.
    """

    def __init__(self) -> None:
        self.bias: NDArray[np.float32] | None = None

    def reset(self) -> None:
        """Reset the state, at the start of a video or at a cut."""
        self.bias = None

    def solve(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Similarity of the next frame.

        Args:
            points: [3, 2], left brow, right brow and nose (x, y) in source pixels.

        Returns:
            float64 [2, 3], source -> canvas.

        Raises:
            ConfigError: the points are not finite, or all three are the same.
        """
        source = np.asarray(points, np.float64)
        if source.shape != (3, 2) or not np.isfinite(source).all() or np.ptp(source, axis=0).max() < 1e-6:
            raise ConfigError(
                f"alignment points {source.tolist()}",
                expected="three finite, distinct points (x, y): left brow, right brow, nose",
            )
        source_centre, source_scale, source_shape = _normalised(source)
        canvas_centre, canvas_scale, canvas_shape = _normalised(TEMPLATE)
        u, _, vt = np.linalg.svd((source_shape.T @ canvas_shape).astype(np.float64))
        v = vt.T
        if np.linalg.det(v @ u.T) < 0:
            v[:, -1] *= -1
        linear = float(canvas_scale / source_scale) * (v @ u.T)

        residual = canvas_shape[2] - source_shape[2]
        self.bias = residual if self.bias is None else _BIAS_OLD * self.bias + _BIAS_NEW * residual
        translation = canvas_centre - linear @ source_centre + self.bias
        return np.column_stack([linear, translation])


Box = tuple[float, float, float, float]
"""A rectangle of the canvas: left, top, right, bottom."""
WHOLE_CANVAS: Box = (0.0, 0.0, CANVAS_WIDTH, CANVAS_HEIGHT)


def crop_matrix(matrix: NDArray[np.float64], size: int, box: Box = WHOLE_CANVAS) -> NDArray[np.float64]:
    """The matrix [2, 3] source -> square crop of `size` pixels, from `matrix` [2, 3], source -> canvas.

    `box` of the canvas is scaled to a square, edges to edges, as an image resize does: pixel centres are half a pixel
    from the edges.
    """
    left, top, right, bottom = box
    scale = np.array([size / (right - left), size / (bottom - top)])
    result: NDArray[np.float64] = np.asarray(matrix, np.float64) * scale[:, None]
    result[:, 2] += (0.5 - np.array([left, top])) * scale - 0.5
    return result


def crop(frame: Picture | Image, matrix: Matrix, size: int, box: Box = WHOLE_CANVAS) -> Image:
    """The aligned face, uint8 [size, size, 3], in a single resampling of `frame`, a picture or uint8 [H, W, 3] RGB.

    See `lipstream.media.lanczos`. Beyond the frame its border is repeated.
    """
    return as_picture(frame).cropped(crop_matrix(matrix, size, box), size, size)


def _normalised(points: NDArray[np.float64]) -> tuple[NDArray[np.float32], np.float32, NDArray[np.float32]]:
    # In float32, like the checkpoints' aligner: the residual is a small difference, so rounding matters.
    single = points.astype(np.float32)
    centre = single.mean(axis=0)
    centred = single - centre
    scale = np.float32(centred.std(ddof=1, dtype=np.float64))  # over all six scalars, unbiased: torch.std
    return centre, scale, centred / scale
