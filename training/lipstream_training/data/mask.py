"""The region of an aligned crop that is generated: mouth, lower cheeks and chin.

Our own shape, drawn for the faces of `faces.py` and checked on real ones: a rounded U that keeps the chin of a wide
open mouth inside. Convention as upstream: 1 = keep, 0 = generate.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

TOP, BOTTOM, LEFT, RIGHT = 0.06, 0.95, 0.05, 0.95
"""Extent of the generated region as shares of the crop."""


def mouth_mask(size: int) -> NDArray[np.float32]:
    """Binary mask float32 [size, size] for a crop of `size` pixels: 1 = keep, 0 = generate."""
    at = (np.arange(size) + 0.5) / size
    x = (at[None, :] - 0.5 * (LEFT + RIGHT)) / (0.5 * (RIGHT - LEFT))
    # Half-width per row: rises fast under the cheekbones, stays full beside the mouth, closes round the chin.
    down = (at - TOP) / (BOTTOM - TOP)
    shoulders = np.clip(down / 0.22, 0, 1)
    bowl = np.clip((down - 0.6) / 0.4, 0, 1)
    half = np.sqrt(1 - (1 - shoulders) ** 2) * (1 - bowl**3.5) ** (1 / 3.5)
    half = np.where((down < 0) | (down > 1), 0.0, np.where(down < 0.22, 0.45 + 0.55 * half, half))
    return np.asarray(np.abs(x) >= half[:, None], np.float32)


def latent_mask(size: int, spatial: int) -> NDArray[np.float32]:
    """The mask at the resolution of the latents, float32 [size / spatial, size / spatial], for crops of `size` pixels.

    Bilinear with half-pixel centres and without antialiasing, then above one half: as upstream.
    """
    if size % spatial:
        raise ValueError(f"size {size} is not a multiple of {spatial}")
    return np.asarray(cv2.resize(mouth_mask(size), (size // spatial, size // spatial)) > 0.5, np.float32)


def compositing_mask(size: int, softness: float = 0.02) -> NDArray[np.float32]:
    """Blending weights of the original picture, float32 [size, size]: 1 outside the generated region, towards 0 inside.

    The soft edge lies wholly inside the region, so that pixels outside it keep the original picture.

    Args:
        softness: standard deviation of the edge as a share of the crop.
    """
    sigma = softness * size
    keep = mouth_mask(size)
    reach = 2 * int(np.ceil(2 * sigma)) + 1
    grown = cv2.dilate(keep, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    soft = np.minimum(cv2.GaussianBlur(grown, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), 1)
    return np.asarray(np.maximum(soft, keep), np.float32)
