"""Composites a generated crop into its frame: generated pixels inside the mask, the source everywhere else."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .._native import render
from ..errors import ConfigError, LipStreamInternalError
from ..media.lanczos import filtered
from ..media.picture import Image, Picture
from .alignment import WHOLE_CANVAS, Box, Crop, Matrix, crop_matrix

_MARGIN = 16  # crop pixels around the mask that resampling may read
_OFFSET_CELLS = 32  # the colour offset is estimated on a grid of this many cells a side
_OFFSET_REACH = 0.15  # distance from the mask within which kept pixels count, in crop sides
_OFFSET_SPREAD = 0.12  # offsets farther than this from their median come from misplaced edges, not from colour
_OFFSET_BLUR = 1.5  # standard deviation of the low pass of the offset, in cells


class Compositor:
    """Blends generated crops of one mask into frames. Holds no state between frames; usable from many threads.

    Args:
        keep_mask: float32 [S, S] in [0, 1], in crop pixels: 1 keeps the source, 0 takes the generated picture.
        edge: least width of the mask's edge in crop pixels, S / 32 by default. A mask with a steeper edge, or one cut
            off by the border of the crop, is softened inwards: kept pixels stay kept.
        box: the part of the alignment canvas that the crop shows.

    Raises:
        ConfigError: the mask has another shape or range.
    """

    def __init__(self, keep_mask: NDArray[np.float32], *, edge: int | None = None, box: Box = WHOLE_CANVAS) -> None:
        keep = np.asarray(keep_mask, np.float32)
        square = keep.ndim == 2 and keep.shape[0] == keep.shape[1] and keep.size > 0
        if not square or not (keep.min() >= 0 and keep.max() <= 1):
            raise ConfigError(f"a keep mask of shape {list(keep.shape)}", expected="float [S, S], values in [0, 1]")
        self.size, self._box = keep.shape[0], box
        edge = max(1, self.size // 32 if edge is None else edge)
        outlined = np.pad(1 - keep, 1)
        steepest = max(float(np.abs(np.diff(outlined, axis=axis)).max()) for axis in (0, 1))
        self._alpha = _feathered(1 - keep, edge) if steepest * edge > 1 else 1 - keep
        self._ring = _ring_weight(keep)
        self._beside = self._ring > 0.1
        rows, columns = np.nonzero(self._alpha)
        self._extent = None
        if rows.size:
            self._extent = (float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max()))
            low = (max(0, int(x.min()) - _MARGIN) for x in (columns, rows))
            high = (min(self.size, int(x.max()) + _MARGIN) for x in (columns, rows))
            self._shown = (*low, *high)

    def composite(self, frame: Picture, generated: Crop, source: Image, matrix: Matrix, share: float = 1.0) -> Picture:
        """`frame` with the generated picture in the masked region.

        Args:
            generated: [S, S, 3], the crop as generated: float32 in [0, 1], or uint8.
            source: uint8 [S, S, 3], the crop of `frame` (`lipstream.face.crop`).
            matrix: float64 [2, 3], source pixels -> canvas pixels, as the crop was made with.
            share: of the generated picture in the masked region, 0 to 1.

        Returns:
            A new picture. Samples that the warped mask keeps are those of `frame`, bit for bit; all of them if the
            region lies outside the frame or the matrix is singular.

        Raises:
            LipStreamInternalError: crops of another size than the mask's, or generated values that are not finite.
        """
        expected = (self.size, self.size, 3)
        generated = in_unit_range(generated)
        if generated.shape != expected or source.shape != expected:
            raise LipStreamInternalError(f"crops of shape {generated.shape} and {source.shape}, not {expected}")
        if not math.isfinite(sum(cv2.sumElems(generated))):
            raise LipStreamInternalError("the generated picture is not finite")
        to_crop = crop_matrix(matrix, self.size, self._box)
        region = self._region(to_crop, frame.width, frame.height)
        if region is None:
            return frame
        offset = self._colour_offset(generated, source)
        generated = generated + cv2.resize(offset, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        left, top, right, bottom = self._shown
        to_shown = to_crop.copy()
        to_shown[:, 2] -= left, top
        seen = filtered(generated[top:bottom, left:right], to_shown)
        left, top, right, bottom = region
        block = np.empty((bottom - top, right - left, 4), np.float32)
        colours = seen.picture, seen.to_picture, seen.filter_x, seen.filter_y
        render(block, (left, top), share, *colours, self._alpha, to_crop)
        return frame.blended(left, top, block)

    def _region(self, to_crop: NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int] | None:
        """Part of the frame (x0, y0, x1, y1) that the masked region can touch; None if there is none."""
        if self._extent is None or not np.isfinite(to_crop).all():
            return None
        largest, smallest = np.linalg.svd(to_crop[:, :2], compute_uv=False)
        if smallest < 1e-3 or largest > 1e3:  # crop pixels per source pixel
            return None
        left, top, right, bottom = self._extent
        corners = np.array([(left, top), (right, top), (left, bottom), (right, bottom)])
        inverse = cv2.invertAffineTransform(to_crop)
        spots = corners @ inverse[:, :2].T + inverse[:, 2]
        margin = 1 + 1 / smallest
        low = np.clip(np.floor(spots.min(axis=0) - margin), 0, (width, height)).astype(int)
        high = np.clip(np.ceil(spots.max(axis=0) + margin) + 1, 0, (width, height)).astype(int)
        if (high <= low).any():
            return None
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def _colour_offset(self, generated: NDArray[np.float32], source: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Offset that gives `generated` the colour of the source around the mask, as a coarse grid over the crop."""
        cells = self._ring.shape
        if not self._beside.any():
            return np.zeros((*cells, 3), np.float32)
        wanted = cv2.resize(source, cells, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        offset = wanted - cv2.resize(generated, cells, interpolation=cv2.INTER_AREA)
        deviation = offset - np.median(offset[self._beside], axis=0)
        trust = np.square(1 / (1 + np.square(deviation / _OFFSET_SPREAD).max(axis=2)))  # Geman-McClure
        filled = _pull_push(offset.astype(np.float32), (self._ring * trust).astype(np.float32))
        return np.asarray(cv2.GaussianBlur(filled, (0, 0), _OFFSET_BLUR), np.float32)


def in_unit_range(picture: Crop) -> NDArray[np.float32]:
    """`picture` (of any shape; values as of `Crop`) as contiguous float32 in [0, 1]."""
    converted = np.ascontiguousarray(picture, np.float32)
    return converted / np.float32(255) if picture.dtype == np.uint8 else converted


def _feathered(alpha: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """`alpha` with a soft edge inside: no value increases, and the border is 0.

    A minimum over a square and then a blur over the same square: each blurred value averages minima whose squares all
    contain the pixel itself, so it does not exceed the pixel's value.
    """
    side = 2 * radius + 1
    shrunk = cv2.erode(alpha, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(cv2.GaussianBlur(shrunk, (side, side), 0.4 * radius, borderType=cv2.BORDER_CONSTANT), np.float32)


def _ring_weight(keep: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weight in [0, 1] of each grid cell for the colour offset: 1 beside the mask, falling with the distance to it."""
    cells = min(_OFFSET_CELLS, keep.shape[0])
    kept = cv2.resize(keep, (cells, cells), interpolation=cv2.INTER_AREA) > 0.999
    distance = cv2.distanceTransform(kept.astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(kept * np.exp(-np.square(np.minimum(distance - 1, cells) / (_OFFSET_REACH * cells))), np.float32)


def _pull_push(values: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """`values` [H, W, 3] where `weight` [H, W] is 1, filled in smoothly where it is 0 (Gortler et al., 1996)."""
    rows, columns = weight.shape
    if rows <= 1 or columns <= 1 or weight.min() >= 1:
        return values
    half = (columns // 2, rows // 2)
    pulled_weight = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    pulled = cv2.resize(values * weight[..., None], half, interpolation=cv2.INTER_AREA)
    pulled = pulled / np.maximum(pulled_weight, 1e-6)[..., None]
    coarse = _pull_push(pulled.astype(np.float32), np.minimum(2 * pulled_weight, 1).astype(np.float32))
    filled = cv2.resize(coarse.reshape(half[1], half[0], 3), (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.asarray(filled + weight[..., None] * (values - filled), np.float32)
