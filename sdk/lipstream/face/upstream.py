"""The released system's crop and compositing, to compare with its output: `FaceOptions(upstream=True)`, `--upstream`.

Of lower quality than ours: the whole face is resampled twice, values are rounded to half precision and truncated, and
the transform has half precision. One in 10,000 values of a crop differs from the original's by a level: it computes the
positions of samples in float32.
Slow: everything is computed on the whole frame, in NumPy.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import CANVAS_HEIGHT, CANVAS_WIDTH
from ..errors import ConfigError
from ..media.picture import Image, Picture
from .alignment import Crop, Matrix
from .compositing import in_unit_range

_FILL = 127.0


def crop(frame: NDArray[np.uint8], matrix: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """The aligned face, uint8 [size, size, 3], of `frame` uint8 [H, W, 3]: onto the canvas, and from there to a square.

    Args:
        matrix: [2, 3], frame pixels -> canvas pixels.
    """
    canvas = _warp(frame, _halved(matrix), CANVAS_WIDTH, CANVAS_HEIGHT, _FILL).astype(np.float16).astype(np.uint8)
    return np.asarray(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_LANCZOS4), np.uint8)


class UpstreamCompositor:
    """Composites the whole face, as the released system does; same interface as `Compositor`.

    Args:
        keep_mask: float32 [S, S] in [0, 1], in crop pixels: 1 keeps the source, 0 takes the generated picture.
    """

    def __init__(self, keep_mask: NDArray[np.float32]) -> None:
        self._keep = np.asarray(keep_mask, np.float32)[..., None]
        side = self._keep.shape[0]
        self._rows, self._columns = _cubic_weights(side, CANVAS_HEIGHT), _cubic_weights(side, CANVAS_WIDTH)

    def composite(self, frame: Picture, generated: Crop, source: Image, matrix: Matrix, share: float = 1.0) -> Picture:
        """`frame` with the face in it. Arguments as of `Compositor.composite`; the result is R'G'B'."""
        height, width = frame.height, frame.width
        face = in_unit_range(generated) * (1 - self._keep) + source / np.float32(255) * self._keep
        canvas = np.einsum("yi,xj,ijc->yxc", self._rows, self._columns, face, optimize=True) * 2 - 1
        back = np.asarray(cv2.invertAffineTransform(_halved(matrix)), np.float64)
        pasted = np.clip(_warp(canvas, back, width, height, _FILL) / 2 + 0.5, 0, 1) * 255
        inside = _warp(np.ones((CANVAS_HEIGHT, CANVAS_WIDTH, 1), np.float32), back, width, height, 0.0)[..., 0]
        inside = np.asarray(cv2.erode(inside, np.ones((2, 2), np.uint8)), np.float32)
        edge = int(inside.sum() ** 0.5) // 20
        if edge == 0:  # a face of less than 20 pixels, for which the original raises an error
            return frame
        soft = cv2.erode(inside, np.ones((2 * edge, 2 * edge), np.uint8))
        soft = share * cv2.GaussianBlur(soft, (2 * edge + 1, 2 * edge + 1), 0)[..., None]
        blended = soft * (inside[..., None] * pasted) + (1 - soft) * frame.rgb
        return Picture.of(np.asarray(np.clip(blended, 0, 255), np.uint8))


def check_geometry(box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    """Raise ConfigError for a bundle whose crop is not the released system's, the whole canvas."""
    if box != (0.0, 0.0, CANVAS_WIDTH, CANVAS_HEIGHT):
        raise ConfigError(
            f"upstream mode for a bundle whose crop is the part {box} of the canvas at {size[0]} x {size[1]}",
            expected="a bundle of released weights, whose crop is the whole canvas",
            fix="omit the option upstream",
        )


def _halved(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(matrix, np.float16).astype(np.float64)


def _warp(
    image: NDArray[np.uint8] | NDArray[np.float32], matrix: NDArray[np.float64], width: int, height: int, fill: float
) -> NDArray[np.float32]:
    """Bilinear, at exact positions: float32 [height, width, C] of `image` [H, W, C], `matrix` image -> result."""
    back = cv2.invertAffineTransform(np.asarray(matrix, np.float64))
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    u, v = (back[i, 0] * x + back[i, 1] * y + back[i, 2] for i in (0, 1))
    rows, columns = image.shape[:2]
    padded = cv2.copyMakeBorder(np.asarray(image, np.float32), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(fill,) * 4)
    padded = padded.reshape(rows + 2, columns + 2, -1)
    u, v = np.clip(u + 1, 0, columns + 0.999999), np.clip(v + 1, 0, rows + 0.999999)
    j, i = u.astype(np.intp), v.astype(np.intp)
    a, b = ((u - j).astype(np.float32)[..., None], (v - i).astype(np.float32)[..., None])
    upper = padded[i, j] * (1 - a) + padded[i, j + 1] * a
    return np.asarray(upper * (1 - b) + (padded[i + 1, j] * (1 - a) + padded[i + 1, j + 1] * a) * b, np.float32)


def _cubic_weights(size: int, wanted: int) -> NDArray[np.float32]:
    """[wanted, size]: weights of the samples in a cubic resize (Keys, a = -0.5) that averages when it shrinks."""
    scale = size / wanted
    wide = max(scale, 1.0)
    places = (np.arange(wanted) + 0.5) * scale
    t = np.abs((np.arange(size) + 0.5 - places[:, None]) / wide)
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
