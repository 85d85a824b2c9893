"""How near generated mouths are to the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from lipstream.face.compositing import Compositor
from lipstream_evaluate.texture import border_energy, gradient_energy
from lipstream_models.parts import StudentParts
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]
_MOUTH = (115.0, 324.0, 305.0, 476.0)  # of the alignment canvas: where lips move
_NO_BLOCKS = 1.1  # as wanted in docs/quality.md
_SHOWN = 8  # frames of a sheet
_WIDE = 160  # pixels of each


@dataclass(frozen=True)
class Closeness:
    """Generated crops against the true ones.

    Attributes:
        error: mean absolute difference around the lips, in levels of 0..255.
        sharpness: gradient energy around the lips over the true one.
        grid: blocks of tokens or of latents, whichever show more, as in docs/quality.md; 1 without any.
    """

    error: float
    sharpness: float
    grid: float

    def better_than(self, other: Closeness) -> bool:
        """Nearer, and without more blocks."""
        return self.distance < other.distance and self.grid <= max(other.grid, _NO_BLOCKS)

    @property
    def distance(self) -> float:
        """The error, times one and the distance of the sharpness from the true one, either way, as a logarithm.

        The error alone is least for a mean of all mouths, which is a blur: a sharp mouth in another position than the
        true one costs more than none.
        """
        return self.error * (1 + float(abs(np.log(max(self.sharpness, 1e-6)))))


def mouth(parts: StudentParts) -> tuple[slice, slice]:
    """Rows and columns of the crop around the lips."""
    left, top, right, bottom = parts.config.crop_box
    size = parts.config.crop_size[0]
    x0, x1 = (round(min(max((x - left) / (right - left), 0), 1) * size) for x in _MOUTH[::2])
    y0, y1 = (round(min(max((y - top) / (bottom - top), 0), 1) * size) for y in _MOUTH[1::2])
    return slice(y0, y1), slice(x0, x1)


def closeness(parts: StudentParts, found: Pictures, true: Pictures) -> Closeness:
    """Of crops uint8 [n, S, S, 3]."""
    config = parts.config
    near = (slice(None), *mouth(parts))
    sharp, sharpest = (sum(map(gradient_energy, pictures[near])) for pictures in (found, true))
    alpha = Compositor(parts.masks["composite"].numpy(), box=config.crop_box).mask.alpha
    sides = {config.spatial, config.spatial * config.patch[1]}
    pictures = [x.astype(np.float32) for x in (found, true)]
    blocks = [[border_energy(x, alpha, side) for x in pictures] for side in sides]
    grid = max(ours / theirs for ours, theirs in blocks)
    error = np.abs(found[near].astype(np.float32) - true[near]).mean()
    return Closeness(float(error), float(sharp / max(sharpest, 1e-6)), grid)


def table(rows: dict[str, Closeness]) -> str:
    """Measures by the name of their row, as text."""
    lines = [f"{'held out':<10}{'error, of 255':>15}{'sharpness':>11}{'grid':>7}"]
    lines += [f"{name:<10}{x.error:>15.2f}{x.sharpness:>11.2f}{x.grid:>7.2f}" for name, x in rows.items()]
    return "\n".join(lines)


def plain(x: Closeness) -> dict[str, float]:
    """For JSON."""
    return {name: round(value, 4) for name, value in asdict(x).items()}


def sheet(parts: StudentParts, rows: Sequence[Pictures]) -> bytes:
    """A PNG of mouths, one row for each of `rows`, which show the same frames, uint8 [n, S, S, 3]."""
    moments = np.linspace(0, len(rows[0]) - 1, _SHOWN).round().astype(int)
    near = mouth(parts)
    pictures = [
        np.concatenate([cv2.resize(row[i][near], (_WIDE, _WIDE), interpolation=cv2.INTER_CUBIC) for i in moments], 1)
        for row in rows
    ]
    return bytes(cv2.imencode(".png", cv2.cvtColor(np.concatenate(pictures), cv2.COLOR_RGB2BGR))[1])
