"""Puts a generated mouth back into its frame: new pixels inside the mask, the source's own pixels everywhere else."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lipstream.errors import ConfigError, LipStreamInternalError
from lipstream.face.align import crop_matrix
from lipstream.face.warp import check_frame

_OFFSET_CELLS = 32  # the colour offset is estimated on a grid of this many cells a side
_OFFSET_REACH = 0.15  # how far from the mask kept pixels count, in crop sides
_OFFSET_SPREAD = 0.15  # deviations from the median offset beyond this are misplaced edges, not colour
_OFFSET_BLUR = 1.5  # standard deviation of the low pass of the offset, in cells


class Compositor:
    """Blends generated crops of one mask into frames. Holds no state between frames; usable from many threads.

    Args:
        keep_mask: float32 [S, S] in [0, 1], in crop pixels: 1 keeps the source, 0 takes the generated picture. A mask
            that reaches the border of the crop is faded out before it.
        feather: width in crop pixels of the soft edge, laid inside the masked region; S / 32 by default.

    Raises:
        ConfigError: the mask has another shape or range.
    """

    def __init__(self, keep_mask: NDArray[np.float32], *, feather: int | None = None) -> None:
        keep = np.asarray(keep_mask, np.float32)
        if (
            keep.ndim != 2
            or keep.shape[0] != keep.shape[1]
            or keep.size == 0
            or not (0 <= keep.min() <= keep.max() <= 1)
        ):
            raise ConfigError(f"a keep mask of shape {list(keep.shape)}", expected="float [S, S], values in [0, 1]")
        self.size = keep.shape[0]
        radius = max(1, self.size // 32) if feather is None else feather
        self._alpha = _feathered(1 - keep, radius)
        self._ring = _ring_weight(keep)
        rows, columns = np.nonzero(self._alpha)
        self._extent = None
        if rows.size:
            self._extent = (float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max()))

    def composite(
        self,
        frame: NDArray[np.uint8],
        generated: NDArray[np.float32],
        source_crop: NDArray[np.uint8],
        matrix: NDArray[np.float64],
    ) -> NDArray[np.uint8]:
        """`frame` with the generated picture in the masked region.

        Args:
            frame: uint8 [H, W, 3], the source.
            generated: float32 [S, S, 3] in [0, 1], the crop as generated.
            source_crop: uint8 [S, S, 3], the crop of `frame` (`lipstream.face.crop`).
            matrix: float64 [2, 3], source pixels -> canvas pixels, as the crop was made with.

        Returns:
            A new uint8 [H, W, 3]. Pixels that the warped mask keeps are those of `frame`, bit for bit; all of them
            where the region lies outside the frame or the matrix is singular.

        Raises:
            ConfigError: `frame` is not uint8 [H, W, 3].
            LipStreamInternalError: crops of another size than the mask's, or generated values that are not finite.
        """
        check_frame(frame)
        expected = (self.size, self.size, 3)
        if generated.shape != expected or source_crop.shape != expected:
            raise LipStreamInternalError(f"crops of shape {generated.shape} and {source_crop.shape}, not {expected}")
        if not np.isfinite(generated).all():
            raise LipStreamInternalError("the generated picture is not finite")
        result = frame.copy()
        to_crop = crop_matrix(matrix, self.size)
        region = self._region(to_crop, frame.shape[1], frame.shape[0])
        if region is None:
            return result
        x0, y0, x1, y1 = region
        to_crop[:, 2] += to_crop[:, :2] @ (x0, y0)  # from here on source pixels count from the region's corner

        picture = np.asarray(generated, np.float32) + self._colour_offset(generated, source_crop)
        picture = np.clip(picture, 0, 1) * np.float32(255)
        colour, alpha = _warp_back(picture, self._alpha, to_crop, x1 - x0, y1 - y0)
        source = frame[y0:y1, x0:x1].astype(np.float32)
        blended = source + alpha[..., None] * (colour - source)
        result[y0:y1, x0:x1] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
        return result

    def _region(self, to_crop: NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int] | None:
        """Part of the frame (x0, y0, x1, y1) that the masked region can touch; None where there is none."""
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

    def _colour_offset(self, generated: NDArray[np.float32], source_crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Smooth [S, S, 3] that added to `generated` gives it the colour of the source around the mask."""
        if not self._ring.any():
            return np.zeros((self.size, self.size, 3), np.float32)
        cells = self._ring.shape[::-1]
        wanted = cv2.resize(source_crop, cells, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        offset = wanted - cv2.resize(np.asarray(generated, np.float32), cells, interpolation=cv2.INTER_AREA)
        middle = np.median(offset[self._ring > 0.1], axis=0)
        offset = middle + np.clip(offset - middle, -_OFFSET_SPREAD, _OFFSET_SPREAD)
        smooth = cv2.GaussianBlur(_pull_push(offset.astype(np.float32), self._ring), (0, 0), _OFFSET_BLUR)
        return np.asarray(cv2.resize(smooth, (self.size, self.size), interpolation=cv2.INTER_LINEAR), np.float32)


def _feathered(alpha: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """`alpha` with a soft edge inside: nowhere more than before, 0 at the border.

    A minimum over a square and then a blur over the same square: each blurred value averages minima that all saw the
    pixel itself, so none exceeds it.
    """
    side = 2 * radius + 1
    shrunk = cv2.erode(alpha, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(cv2.GaussianBlur(shrunk, (side, side), 0.4 * radius, borderType=cv2.BORDER_CONSTANT), np.float32)


def _ring_weight(keep: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weight in [0, 1] of each grid cell for the colour offset: 1 beside the mask, falling with the distance to it."""
    cells = min(_OFFSET_CELLS, keep.shape[0])
    kept = cv2.resize(keep, (cells, cells), interpolation=cv2.INTER_AREA) > 0.999
    distance = cv2.distanceTransform(kept.astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(kept * np.exp(-np.square((distance - 1) / (_OFFSET_REACH * cells))), np.float32)


def _pull_push(values: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """`values` [H, W, 3] where `weight` [H, W] is 1, continued smoothly to where it is 0 (Gortler et al., 1996)."""
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


def _warp_back(
    picture: NDArray[np.float32], alpha: NDArray[np.float32], to_crop: NDArray[np.float64], width: int, height: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`picture` [S, S, 3] and `alpha` [S, S] as seen from the source: [height, width, 3] and [height, width].

    Bicubic where the source is the finer one; where it is coarser, the mean over each source pixel.
    """
    centre_alpha = _sample(alpha, to_crop, width, height, cv2.INTER_LINEAR)
    step = np.linalg.norm(to_crop[:, :2], axis=0)  # crop pixels per source pixel, along the source's x and y
    samples = np.maximum(1, np.ceil(step - 0.25)).astype(int)
    if samples.max() == 1:
        return _sample(picture, to_crop, width, height, cv2.INTER_CUBIC), centre_alpha
    fine = to_crop.copy()
    fine[:, :2] /= samples
    fine[:, 2] -= to_crop[:, :2] @ ((samples - 1) / (2 * samples))
    fine_width, fine_height = width * int(samples[0]), height * int(samples[1])
    colour = _sample(picture, fine, fine_width, fine_height, cv2.INTER_LINEAR)
    fine_alpha = _sample(alpha, fine, fine_width, fine_height, cv2.INTER_LINEAR)
    colour = np.asarray(cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    mean_alpha = np.asarray(cv2.resize(fine_alpha, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    return colour, np.where(centre_alpha > 0, mean_alpha, 0).astype(np.float32)  # a kept centre keeps its pixel


def _sample(
    image: NDArray[np.float32], to_image: NDArray[np.float64], width: int, height: int, interpolation: int
) -> NDArray[np.float32]:
    # Colour goes on beyond the crop's border, alpha ends there.
    border = cv2.BORDER_REPLICATE if image.ndim == 3 else cv2.BORDER_CONSTANT
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, to_image, (width, height), flags=flags, borderMode=border), np.float32)
