"""Texture of pictures without a model: how sharp they are, and whether blocks show."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_GENERATED = 0.9  # mean opacity from which a part of the crop counts as generated
_NOISE = 0.01  # squared levels, less than any picture has


def luma(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """RGB [..., 3] -> [...], in the same levels."""
    return pictures @ np.array([0.299, 0.587, 0.114], np.float32)


def gradient_energy(picture: NDArray[np.uint8]) -> float:
    """Mean square of the luma's differences between neighbours, of RGB uint8 [H, W, 3], in levels."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.square(np.diff(grey, axis=0)).mean() + np.square(np.diff(grey, axis=1)).mean())


def border_energy(crops: NDArray[np.float32], alpha: NDArray[np.float32], token: int) -> float:
    """Energy of the luma's differences across borders of tokens over that of their neighbours.

    Borders are cut into pieces of a token's length. For each piece and frame the energy across it is compared with
    those across the parallel lines up to half a token away; the mean of the logarithms is that over all of them, so
    that an edge of the lips that lies on a border by chance counts little.

    Args:
        crops: RGB [n, S, S, 3] in levels of 0..255. alpha: [S, S], share of the generated picture.
        token: pixels of a token's side, a divisor of S.
    """
    size = alpha.shape[0]
    half, tokens, grey = token // 2, size // token, luma(crops)
    inner = np.s_[half : half + (tokens - 1) * token]
    ratios = []
    for picture, opacity in ((grey, alpha), (grey.transpose(0, 2, 1), alpha.T)):
        lines = np.square(np.diff(picture, axis=1))[:, inner]  # the border is line `token - 1 - half` of its group
        grouped = lines.reshape(len(lines), tokens - 1, token, tokens, token).mean(axis=4)
        generated = opacity[inner].reshape(tokens - 1, token, tokens, token).mean(axis=(1, 3)) > _GENERATED
        energy = np.log(grouped + _NOISE).transpose(0, 1, 3, 2)[:, generated]
        border = token - 1 - half
        ratios.append(energy[..., border] - np.delete(energy, border, axis=-1).mean(axis=-1))
    return float(np.exp(np.concatenate(ratios, axis=1).mean()))
