"""One resampling from a plane to an affine view of it, without aliasing when the view is smaller."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray


def warp(
    plane: NDArray[np.uint8] | NDArray[np.uint16],
    matrix: NDArray[np.float64],
    width: int,
    height: int,
    *,
    fill: float | None = None,
) -> NDArray[np.float32]:
    """`plane` [H, W] warped by `matrix` float64 [2, 3] (plane -> view): the view, float32 [height, width].

    Bilinear if the view magnifies. If it shrinks, every view pixel is the mean over its footprint: the visible part of
    the plane is first averaged over whole blocks, then sampled several times per view pixel.

    Args:
        fill: value around the plane; None repeats its border.
    """
    shrink = 1 / np.linalg.norm(matrix[:, :2], axis=1)  # plane pixels per view pixel, along x and y of the view
    block = max(1, math.floor(shrink.min()))
    part, matrix = part_under(plane, matrix, width, height, block)
    x, y = (max(1, math.ceil(s / block - 0.1)) for s in shrink)  # a tenth too few samples do not alias
    fine = matrix * np.array([[x], [y]])
    fine[:, 2] += [(x - 1) / 2, (y - 1) / 2]
    view = cv2.warpAffine(
        part.astype(np.float32),
        fine,
        (width * x, height * y),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT,
        borderValue=(fill or 0.0,),
    )
    if (x, y) != (1, 1):
        view = cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(view, np.float32)


def part_under(
    image: cv2.typing.MatLike, matrix: NDArray[np.float64], width: int, height: int, block: int, margin: int = 1
) -> tuple[cv2.typing.MatLike, NDArray[np.float64]]:
    """The part of `image` under the view averaged over block x block pixels, and the matrix from that to the view.

    Args:
        margin: pixels of the view around it that the part has, too, where the image does.
    """
    rows, columns = image.shape[:2]
    inverse = cv2.invertAffineTransform(matrix)
    ends = [(x, y) for x in (-margin, width - 1 + margin) for y in (-margin, height - 1 + margin)]
    corners = np.array(ends, np.float64) @ inverse[:, :2].T + inverse[:, 2]
    limit = np.array([columns, rows])
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - 2 * block, 0, limit - 1)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2 * block, low + 1, limit)
    part = block_mean(image[low[1] : high[1], low[0] : high[0]], block)
    linear = matrix[:, :2] * block
    translation = matrix[:, 2] + matrix[:, :2] @ (low + (block - 1) / 2)
    return part, np.column_stack([linear, translation])


def block_mean(image: cv2.typing.MatLike, block: int) -> cv2.typing.MatLike:
    """`image` averaged over block x block pixels, its border repeated to whole blocks."""
    if block == 1:
        return image
    pad_y, pad_x = (-n % block for n in image.shape[:2])
    if pad_x or pad_y:
        image = cv2.copyMakeBorder(image, 0, pad_y, 0, pad_x, cv2.BORDER_REPLICATE)
    return cv2.resize(image, (image.shape[1] // block, image.shape[0] // block), interpolation=cv2.INTER_AREA)
