"""Glasses: two rims and a bridge before the eyes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_EYE = (0.30775, 7.27)  # x and y of the left eye in the shared head, decimetres


@dataclass(frozen=True)
class Glasses:
    """Lengths in decimetres.

    Attributes:
        half_width, half_height: of a rim. squareness: 2 an ellipse .. 5 nearly a rectangle.
        thickness: of the rim. colour: linear RGB, float64 [3].
    """

    half_width: float
    half_height: float
    squareness: float
    thickness: float
    colour: NDArray[np.float64]

    @classmethod
    def random(cls, rng: np.random.Generator) -> Glasses:
        return cls(
            half_width=rng.uniform(0.21, 0.26),
            half_height=rng.uniform(0.13, 0.22),
            squareness=rng.uniform(2, 5),
            thickness=rng.uniform(0.012, 0.04),
            colour=np.full(3, rng.uniform(0.005, 0.2)) * rng.uniform(0.5, 1.2, 3),
        )

    def lines(self, front: float) -> list[NDArray[np.float64]]:
        """Rims, bridge and the beginnings of the temples as lines [n, 3] in the shared head; `front` is their z."""
        angle = np.linspace(0, 2 * np.pi, 40)
        power = 2 / self.squareness
        x = self.half_width * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
        y = self.half_height * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power - 0.03
        result = []
        for side in (-1, 1):
            bent = front - 0.35 * (np.abs(side * _EYE[0] + x) ** 2)  # rims follow the face
            result.append(np.stack([side * _EYE[0] + x, _EYE[1] + y, bent], 1))
            hinge = side * (_EYE[0] + self.half_width)
            result.append(
                np.array([[hinge, _EYE[1] + 0.05, front - 0.11], [hinge * 1.08, _EYE[1] + 0.05, front - 0.35]])
            )
        inner, nose, bridge = _EYE[0] - self.half_width, _EYE[1] + 0.03, _EYE[1] + 0.06
        result.append(np.array([[-inner, nose, front], [0, bridge, front], [inner, nose, front]]))
        return result

    def draw(
        self,
        colours: NDArray[np.float32],
        coverage: NDArray[np.float32],
        front: float,
        to_pixels: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        scale: float,
    ) -> None:
        """Draw over a rendered picture, in place.

        Args:
            colours, coverage: see `shade`. to_pixels: points [n, 3] of the resting head -> [n, 2] pixels.
            scale: pixels per decimetre.
        """
        area = np.zeros(coverage.shape, np.uint8)
        thickness = max(1, round(self.thickness * scale))
        for line in self.lines(front):
            points = np.round(to_pixels(line) * 16).astype(np.int32)
            cv2.polylines(area, [points[:, None]], False, 255, thickness, cv2.LINE_AA, 4)
        share = area[..., None] / np.float32(255)
        colours += (self.colour.astype(np.float32) - colours) * share
        np.maximum(coverage, share[..., 0], out=coverage)
