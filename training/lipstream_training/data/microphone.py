"""A microphone in front of the face: an occluder that hides part of the mouth."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Microphone:
    """A capsule on a stick; all lengths are shares of the crop.

    Attributes:
        x, y: of the capsule's middle. radius: of the capsule. lean: sideways run of the stick on its way down.
        grey: its colour, 0..255. sway: how far it moves from one moment to the next.
    """

    x: float
    y: float
    radius: float
    lean: float
    grey: float
    sway: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Microphone:
        return cls(
            x=float(rng.uniform(0.1, 0.9)),
            y=float(rng.uniform(0.55, 0.95)),
            radius=float(rng.uniform(0.05, 0.14)),
            lean=float(rng.uniform(-0.4, 0.4)),
            grey=float(rng.uniform(10, 110)),
            sway=float(rng.uniform(0, 0.02)),
        )

    def hold(self, picture: NDArray[np.uint8], moment: int) -> NDArray[np.uint8]:
        """`picture` uint8 [size, size, 3] with the microphone before it, at frame `moment`."""
        size = picture.shape[0]
        x = (self.x + self.sway * np.sin(0.7 * moment)) * size
        y = (self.y + self.sway * np.cos(0.5 * moment)) * size
        radius, out = self.radius * size, picture.copy()
        foot = (x + self.lean * size, 1.2 * size)

        def fixed(*point: float) -> tuple[int, int]:
            return round(point[0] * 16), round(point[1] * 16)

        dark, light = (self.grey * 0.5,) * 3, (self.grey * 1.5,) * 3
        cv2.line(out, fixed(x, y), fixed(*foot), dark, max(1, round(0.9 * radius)), cv2.LINE_AA, 4)
        cv2.circle(out, fixed(x, y), round(16 * radius), (self.grey,) * 3, -1, cv2.LINE_AA, 4)
        cv2.circle(out, fixed(x - 0.3 * radius, y - 0.35 * radius), round(5 * radius), light, -1, cv2.LINE_AA, 4)
        return out
