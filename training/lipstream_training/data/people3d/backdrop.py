"""What is behind a person: a blurred room that stays where it is while the head moves."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


class Backdrop:
    """A room in picture units, see `Shot.project`.

    Args:
        density: pixels per picture unit.
    """

    def __init__(self, rng: np.random.Generator, density: float) -> None:
        side = max(16, round(_EXTENT * density))
        self._room = _room(rng, side, side)
        self._to_room = np.array([[density, 0, side / 2], [0, density, side / 2]])

    def seen(self, to_image: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
        """float32 [height, width, 3], linear RGB. `to_image`: [2, 3], picture units -> pixels."""
        to_picture = np.vstack([cv2.invertAffineTransform(to_image), [0, 0, 1]])
        matrix = np.vstack([self._to_room, [0, 0, 1]]) @ to_picture
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpAffine(self._room, matrix[:2], size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(seen, np.float32)


_EXTENT = 900  # picture units, about 9 decimetres at the face


def _room(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """float32 [height, width, 3], linear RGB."""
    tint = rng.uniform(0.02, 0.7) * rng.dirichlet([12, 12, 12]) * 3
    image = np.ones((height, width, 3), np.float32) * tint.astype(np.float32)
    for _ in range(rng.integers(1, 4)):
        knots = rng.standard_normal((rng.integers(2, 6), rng.integers(2, 6), 3)).astype(np.float32)
        wave = np.asarray(cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC))
        image *= np.exp(0.3 * wave[..., :1] + 0.08 * wave)
    for _ in range(rng.integers(0, 7)):
        middle, sides = rng.uniform(-0.2, 1.2, 2) * (width, height), rng.uniform(0.03, 0.5, 2) * (width, height)
        corners = cv2.boxPoints((tuple(middle), tuple(sides), rng.uniform(-20, 20)))
        shape = np.zeros((height, width), np.float32)
        cv2.fillPoly(shape, [corners.astype(np.int32)], 1.0)
        area = np.asarray(cv2.GaussianBlur(shape, (0, 0), rng.uniform(0.5, 8)), np.float32)[..., None]
        colour = rng.uniform(0.0, 0.8) * rng.dirichlet([6, 6, 6]) * 3
        image = image * (1 - area) + area * colour.astype(np.float32)
    return image
