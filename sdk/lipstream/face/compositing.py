"""Composites a generated crop into its frame: generated pixels inside the mask, the source everywhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .._native import render
from ..errors import ConfigError, LipStreamInternalError
from ..media.lanczos import Filter
from ..media.picture import Image, Picture, PlaneRegion
from .alignment import WHOLE_CANVAS, Box, Crop, Matrix, crop_matrix

_MARGIN = 16  # crop pixels around the mask that resampling may read
_OFFSET_CELLS = 32  # the colour offset is estimated on a grid of this many cells a side
_OFFSET_REACH = 0.15  # distance from the mask within which kept pixels count, in crop sides
_OFFSET_SPREAD = 0.12  # offsets farther than this from their median come from misplaced edges, not from colour
_OFFSET_BLUR = 1.5  # standard deviation of the low pass of the offset, in cells
_BESIDE = 0.1  # weight above which a cell counts as beside the mask


@dataclass(frozen=True, eq=False)
class OverlayMask:
    """What all overlays of a mask share.

    Attributes:
        alpha: float32 [S, S], opacity of the generated picture.
        trusted: float32 [cells, cells], weight of each cell of a coarse grid over the crop for the colour offset.
        shown: x0, y0, x1, y1, the part of the crop that is seen.
    """

    alpha: NDArray[np.float32]
    trusted: NDArray[np.float32]
    shown: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Overlay:
    """Where and how a generated crop goes into one frame.

    Attributes:
        region: x0, y0, x1, y1, the pixels of the frame that it can touch. samples: of the frame's planes, likewise.
        to_crop: float64 [2, 3], frame -> crop.
        filter: by which the part `mask.shown` of the crop is sampled. wanted: float32 [cells, cells, 3], R'G'B' in
            [0, 1], the mean colour of the source's crop in each cell.
    """

    frame: Picture
    mask: OverlayMask
    region: tuple[int, int, int, int]
    samples: list[PlaneRegion]
    to_crop: NDArray[np.float64]
    filter: Filter
    wanted: NDArray[np.float32]


class Compositor:
    """Blends generated crops of one mask into frames. Holds no state between frames; usable from many threads.

    Attributes:
        size: S. mask: what its overlays share.

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
        alpha = np.asarray(_feathered(1 - keep, edge) if steepest * edge > 1 else 1 - keep, np.float32)
        rows, columns = np.nonzero(alpha)
        self._extent = None
        shown = (0, 0, self.size, self.size)
        if rows.size:
            left, right, top, bottom = int(columns.min()), int(columns.max()), int(rows.min()), int(rows.max())
            self._extent = (float(left), float(top), float(right), float(bottom))
            shown = (
                max(0, left - _MARGIN),
                max(0, top - _MARGIN),
                min(self.size, right + _MARGIN),
                min(self.size, bottom + _MARGIN),
            )
        self.mask = OverlayMask(alpha, _ring_weight(keep), shown)

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
        overlay = self.overlay(frame, source, matrix)
        if overlay is None:
            return frame
        generated = corrected(generated, colour_offset(generated, overlay.wanted, self.mask.trusted))
        (left, top, right, bottom), seen = self.mask.shown, overlay.filter
        picture = seen.prepared(generated[top:bottom, left:right])
        left, top, right, bottom = overlay.region
        block = np.empty((bottom - top, right - left, 4), np.float32)
        colours = picture, seen.to_picture, seen.x, seen.y
        render(block, (left, top), share, *colours, self.mask.alpha, overlay.to_crop)
        return frame.blended(overlay.samples, block)

    def overlay(self, frame: Picture, source: Image, matrix: Matrix) -> Overlay | None:
        """Where and how a generated crop goes into `frame`; None if nowhere. Arguments as of `composite`."""
        to_crop = crop_matrix(matrix, self.size, self._box)
        region = self._region(to_crop, frame.width, frame.height)
        if region is None:
            return None
        to_shown = to_crop.copy()
        to_shown[:, 2] -= self.mask.shown[:2]
        cells = self.mask.trusted.shape
        wanted = cv2.resize(source, cells, interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
        samples = frame.regions(region[0], region[1], region[2] - region[0], region[3] - region[1])
        return Overlay(frame, self.mask, region, samples, to_crop, Filter.of(to_shown), np.asarray(wanted, np.float32))

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


def colour_offset(
    generated: NDArray[np.float32], wanted: NDArray[np.float32], trusted: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Offset that gives `generated` [S, S, 3] the colour of the source around the mask, as a coarse grid over the crop.

    Args:
        wanted: [cells, cells, 3], the source's colour.
        trusted: [cells, cells], the weight of each cell; above 0 only where the source is kept.
    """
    beside = trusted > _BESIDE
    if not beside.any():
        return np.zeros((*trusted.shape, 3), np.float32)
    offset = wanted - cv2.resize(generated, trusted.shape, interpolation=cv2.INTER_AREA)
    deviation = offset - np.median(offset[beside], axis=0)
    trust = np.square(1 / (1 + np.square(deviation / _OFFSET_SPREAD).max(axis=2)))  # Geman-McClure
    filled = _pull_push(offset.astype(np.float32), (trusted * trust).astype(np.float32))
    return np.asarray(cv2.GaussianBlur(filled, (0, 0), _OFFSET_BLUR), np.float32)


def corrected(generated: NDArray[np.float32], offset: NDArray[np.float32]) -> NDArray[np.float32]:
    """`generated` [S, S, 3] plus `offset`, resized linearly."""
    size = len(generated)
    return np.asarray(generated + cv2.resize(offset, (size, size), interpolation=cv2.INTER_LINEAR), np.float32)


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
