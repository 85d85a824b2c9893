"""What hides part of a mouth, beside the microphone: a hand, strands of hair. Lengths are shares of the crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..microphone import Microphone


class Occluder(Protocol):
    def hold(self, picture: NDArray[np.uint8], moment: int) -> NDArray[np.uint8]:
        """`picture` uint8 [size, size, 3] with the thing before it, at frame `moment`."""


def random_occluder(rng: np.random.Generator, skin: NDArray[np.uint8], hair: NDArray[np.uint8]) -> Occluder | None:
    """One for a seventh of all clips. `skin`, `hair`: uint8 [3] RGB of the person in its light."""
    kind = rng.random()
    if kind < 0.06:
        return Microphone.random(rng)
    if kind < 0.10:
        return Hand.random(rng, skin)
    return Strands.random(rng, hair) if kind < 0.14 else None


@dataclass(frozen=True)
class Hand:
    """Fingers before the mouth or chin, from below.

    Attributes:
        colour: uint8 [3]. x, y: of the first finger's tip. lean: direction of the fingers, radians from upwards.
        thickness: of a finger. fingers: how many. sway: movement. rise: how far it moves up
            and down. pace: radians a frame.
    """

    colour: NDArray[np.uint8]
    x: float
    y: float
    lean: float
    thickness: float
    fingers: int
    sway: float
    rise: float
    pace: float

    @classmethod
    def random(cls, rng: np.random.Generator, colour: NDArray[np.uint8]) -> Hand:
        return cls(
            colour=colour,
            x=float(rng.uniform(0.15, 0.7)),
            y=float(rng.uniform(0.35, 0.75)),
            lean=float(rng.normal(0, 0.5)),
            thickness=float(rng.uniform(0.10, 0.15)),
            fingers=int(rng.integers(1, 5)),
            sway=float(rng.uniform(0, 0.03)),
            rise=float(rng.uniform(0, 0.4)),
            pace=float(rng.uniform(0.03, 0.15)),
        )

    def hold(self, picture: NDArray[np.uint8], moment: int) -> NDArray[np.uint8]:
        size, out = picture.shape[0], picture.copy()
        up = np.array([np.sin(self.lean), -np.cos(self.lean)])
        across = np.array([np.cos(self.lean), np.sin(self.lean)])
        moved = np.array([self.sway * np.sin(0.5 * moment), self.rise * (1 - np.cos(self.pace * moment)) / 2])
        colour = self.colour.astype(np.float64)
        width = self.thickness * size
        for finger in range(self.fingers):
            length = (0.0, -0.06, -0.03, 0.06)[finger]  # the second is the longest
            tip = (np.array([self.x, self.y]) + moved + across * finger * self.thickness * 0.95 - up * length) * size
            foot = tip - up * 1.6 * size
            for share, shift, shade in ((1.0, 0.0, 0.62), (0.86, 0.0, 0.9), (0.5, -0.12, 1.0)):  # rim to ridge
                middle = across * shift * width
                _line(out, tip + middle, foot + middle, colour * shade, width * share)
            nail = tip + up * 0.12 * width
            _line(out, nail, nail - up * 0.35 * width, colour * 0.8 + (50, 35, 35), 0.45 * width)
        return out


@dataclass(frozen=True)
class Strands:
    """Hair that hangs over the mouth.

    Attributes:
        colour: uint8 [3]. lines: float64 [n, 4], x at the top, in the middle and at the bottom, and thickness.
        sway: movement.
    """

    colour: NDArray[np.uint8]
    lines: NDArray[np.float64]
    sway: float

    @classmethod
    def random(cls, rng: np.random.Generator, colour: NDArray[np.uint8]) -> Strands:
        n = int(rng.integers(3, 12))
        start, bend, end = rng.uniform(0.05, 0.95), rng.normal(0, 0.15), rng.normal(0, 0.2)
        spread = rng.normal(0, 1, (n, 3)) * (0.06, 0.07, 0.10)
        lines = np.column_stack([spread + np.array([start, start + bend, start + end]), rng.uniform(0.006, 0.025, n)])
        return cls(colour, lines, float(rng.uniform(0, 0.03)))

    def hold(self, picture: NDArray[np.uint8], moment: int) -> NDArray[np.uint8]:
        size, out = picture.shape[0], picture.copy()
        t = np.linspace(0, 1, 12)
        for number, (top, middle, bottom, thickness) in enumerate(self.lines):
            sway = self.sway * np.sin(0.3 * moment + number) * t
            x = (1 - t) ** 2 * top + 2 * t * (1 - t) * middle + t**2 * bottom + sway
            points = np.round(np.stack([x, 1.1 * t - 0.05], 1) * size * 16).astype(np.int32)
            colour = tuple(float(c) for c in np.clip(self.colour * (0.8 + 0.05 * number), 0, 255))
            cv2.polylines(out, [points[:, None]], False, colour, max(1, round(thickness * size)), cv2.LINE_AA, 4)
        return out


def _line(
    out: NDArray[np.uint8],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    colour: NDArray[np.float64],
    thickness: float,
) -> None:
    """A line with round ends, in place."""
    a, b = ((round(float(x) * 16), round(float(y) * 16)) for x, y in (start, end))
    values = tuple(float(c) for c in np.clip(colour, 0, 255))
    cv2.line(out, a, b, values, max(1, round(thickness)), cv2.LINE_AA, 4)
