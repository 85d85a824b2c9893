"""One resampling from a picture to an affine view of it, without aliasing when the view is smaller."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray


def warp(
    image: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    width: int,
    height: int,
    *,
    border: int = cv2.BORDER_REPLICATE,
) -> NDArray[np.uint8]:
    """`image` uint8 [H, W, C] warped by `matrix` float64 [2, 3] (image -> view): the view, [height, width, C].

    Bilinear if the view magnifies. If it shrinks, every view pixel is the mean over its footprint: the visible part of
    the image is first averaged over whole blocks, then sampled several times per view pixel.
    """
    matrix = np.asarray(matrix, np.float64)
    shrink = 1 / np.linalg.norm(matrix[:, :2], axis=1)  # image pixels per view pixel, along x and y of the view
    block = max(1, math.floor(shrink.min()))
    if block > 1:
        image, matrix = _block_mean(image, matrix, width, height, block)
        shrink = shrink / block
    samples_x, samples_y = (max(1, math.ceil(s - 0.1)) for s in shrink)  # a tenth too few samples do not alias
    if samples_x == samples_y == 1:
        return _affine(image, matrix, width, height, border)
    fine = matrix * np.array([[samples_x], [samples_y]])
    fine[:, 2] += [(samples_x - 1) / 2, (samples_y - 1) / 2]
    view = _affine(image, fine, width * samples_x, height * samples_y, border)
    return np.asarray(cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA), image.dtype)


def _affine(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], width: int, height: int, border: int
) -> NDArray[np.uint8]:
    return np.asarray(
        cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border), image.dtype
    )


def _block_mean(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], width: int, height: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The part of `image` under the view averaged over block x block pixels, and the matrix from that to the view."""
    rows, columns = image.shape[:2]
    inverse = cv2.invertAffineTransform(matrix)
    corners = np.array([(-1, -1), (width, -1), (-1, height), (width, height)], np.float64) @ inverse[:, :2].T
    corners += inverse[:, 2]
    limit = np.array([columns, rows])
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - 2 * block, 0, limit - 1)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2 * block, low + 1, limit)
    part: NDArray[np.uint8] = image[low[1] : high[1], low[0] : high[0]]
    pad_x, pad_y = (int(-n % block) for n in high - low)
    if pad_x or pad_y:
        part = np.asarray(cv2.copyMakeBorder(part, 0, pad_y, 0, pad_x, cv2.BORDER_REPLICATE), image.dtype)
    small = cv2.resize(part, (part.shape[1] // block, part.shape[0] // block), interpolation=cv2.INTER_AREA)
    linear = matrix[:, :2] * block
    translation = matrix[:, 2] + matrix[:, :2] @ (low + (block - 1) / 2)
    return np.asarray(small, image.dtype), np.column_stack([linear, translation])
