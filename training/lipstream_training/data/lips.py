"""The moving part of a head: the jaw that stretches the skin, and lips, teeth and tongue painted over it.

Only a window of the head sheet is painted, whose edge never moves, so two mouths of one head differ only inside
`MOVING`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .head import Head
from .identity import Identity
from .sheet import Image, Points, Sheet, curve, ellipse, ramp

MOVING = (-158.0, 268.0, 158.0, 560.0)
"""The rectangle that a mouth may change, in face units."""


@dataclass(frozen=True)
class MouthShape:
    """One mouth: see `mouth.MouthTrack` for the ranges."""

    opening: float = 0.0
    width: float = 0.0
    teeth: float = 0.0
    tongue: float = 0.0


@dataclass(frozen=True)
class LipGeometry:
    """Lips in face units. Outlines run from the left corner over the middle to the right one.

    Attributes:
        upper_outer, upper_inner, lower_inner, lower_outer: [n, 2].
        drop: how far the jaw has moved down.
        gap: height of the aperture.
    """

    upper_outer: Points
    upper_inner: Points
    lower_inner: Points
    lower_outer: Points
    drop: float
    gap: float


def lip_geometry(p: Identity, mouth: MouthShape) -> LipGeometry:
    """The geometry of the lips of `p` with this mouth shape."""
    spread, rounded = max(0.0, mouth.width), max(0.0, -mouth.width)
    parted = 9.0 * mouth.teeth * (1 - mouth.opening)
    gap = p.gape * mouth.opening * (1 - 0.22 * spread - 0.18 * rounded) + parted
    drop, lift = 0.76 * gap, 0.24 * gap
    half = p.mouth_width * (1 + 0.15 * spread - 0.34 * rounded) - 0.08 * gap
    fullness = 1 + 0.22 * rounded - 0.14 * spread
    upper, lower = p.upper_lip * fullness * (1 - 0.0025 * gap), p.lower_lip * fullness * (1 - 0.002 * gap)
    y = p.mouth_y
    corner = y + p.mouth_curl - 3 * spread + 0.3 * drop
    inner = half * (0.90 - 0.03 * rounded)
    u = np.linspace(-1, 1, 17)
    arch = (1 - u**2) ** (0.62 + 0.2 * spread)
    upper_inner = np.stack([inner * u, corner + (y - lift - corner) * arch], 1)
    lower_inner = np.stack([inner * u, corner + (y + drop - corner) * arch], 1)
    top, bottom = y - lift, y + drop
    tilt = p.asymmetry
    outer_top = [
        *[(-half, corner), (-0.62 * half, top - 0.52 * upper + 0.25 * (corner - top)), (-0.2 * half, top - upper)],
        *[(0, top - upper * (1 - p.bow)), (0.2 * half, top - upper)],
        *[(0.62 * half, top - 0.52 * upper + 0.25 * (corner - top)), (half, corner)],
    ]
    outer_bottom = [
        *[
            (-half, corner),
            (-0.66 * half, bottom + 0.50 * lower + 0.3 * (corner - bottom)),
            (-0.3 * half, bottom + 0.93 * lower),
        ],
        *[(0, bottom + lower), (0.3 * half, bottom + 0.93 * lower)],
        *[(0.66 * half, bottom + 0.50 * lower + 0.3 * (corner - bottom)), (half, corner)],
    ]
    upper_outer, lower_outer = curve(outer_top), curve(outer_bottom)
    for line in (upper_outer, upper_inner, lower_inner, lower_outer):
        line[:, 1] += tilt * line[:, 0] / p.mouth_width
    return LipGeometry(upper_outer, upper_inner, lower_inner, lower_outer, drop, gap)


class MouthPainter:
    """Paints mouths on one head."""

    def __init__(self, person: Identity, head: Head) -> None:
        self.person, self.head = person, head
        sheet = head.sheet
        self.window = sheet.window(*MOVING)
        rows, columns = self.window
        x, y = sheet.x[columns][None], sheet.y[rows][:, None]
        self._column = np.ascontiguousarray(np.broadcast_to(np.arange(x.size, dtype=np.float32), (y.size, x.size)))
        self._row = np.ascontiguousarray(
            np.broadcast_to(np.arange(y.size, dtype=np.float32)[:, None], (y.size, x.size))
        )
        side = np.clip(1 - (np.abs(x) / 156) ** 4, 0, 1) ** 2
        jaw = ramp(y, person.mouth_y - 22, person.mouth_y + 72) * (1 - ramp(y, 530, 558)) * side
        self._jaw = np.asarray(jaw * sheet.density, np.float32)
        corner = person.mouth_width
        pull = np.exp(-0.5 * ((x - corner) / 30) ** 2) - np.exp(-0.5 * ((x + corner) / 30) ** 2)
        pull = pull * np.exp(-0.5 * ((y - person.mouth_y) / 26) ** 2) * side * ramp(y, 270, 300)
        self._pull = np.asarray(pull * sheet.density, np.float32)
        self._skin = np.ascontiguousarray(sheet.rgb[self.window])
        self._shade = head.shade[self.window]
        self._local = (float(x[0, 0] - 0.5 / sheet.density), float(y[0, 0] - 0.5 / sheet.density))

    def paint(self, mouth: MouthShape) -> Image:
        """The window of the head sheet with this mouth, float32 [rows, columns, 4], premultiplied."""
        p, g = self.person, lip_geometry(self.person, mouth)
        stretch = 0.5 * (float(g.upper_outer[-1, 0]) - p.mouth_width)
        map_x = self._column - np.float32(stretch) * self._pull
        map_y = self._row - np.float32(g.drop) * self._jaw
        skin: Image = np.asarray(
            cv2.remap(self._skin, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
        )
        x0, y0 = self._local
        density = self.head.sheet.density
        local = Sheet((x0, y0, x0 + skin.shape[1] / density, y0 + skin.shape[0] / density), density)
        local.rgb = skin[..., :3]
        self._lips(local, mouth, g)
        skin[..., :3] = local.rgb
        return skin

    def _lips(self, sheet: Sheet, mouth: MouthShape, g: LipGeometry) -> None:
        p, shade = self.person, self._shade
        outer = np.concatenate([g.upper_outer, g.lower_outer[::-1]])
        sheet.multiply(outer * (1.04, 1) + (0, 4), (0.93, 0.88, 0.87), soft=6)
        top = np.concatenate([g.upper_outer, g.upper_inner[::-1]])
        bottom = np.concatenate([g.lower_inner, g.lower_outer[::-1]])
        for outline, factor in ((top, 0.84), (bottom, 1.04)):
            area, window = sheet.mask(outline, 1.8)
            lit = np.clip(p.lips * shade[window] * factor, 0, 255)
            sheet.blend(area * 0.92, lit, window)
        middle = float(g.lower_inner[8, 1])
        full = float(g.lower_outer[len(g.lower_outer) // 2, 1]) - middle
        width = float(g.lower_outer[-1, 0])
        gloss = p.lip_gloss * 90 * p.exposure
        for u in (-0.22, 0.2):
            spot, window = sheet.mask(
                ellipse(u * width, middle + 0.42 * full, 0.2 * width, 0.16 * full), 0.1 * full + 1
            )
            sheet.rgb[window] += spot[..., None] * gloss
        fold = ellipse(0, middle + 0.92 * full, 0.55 * width, 0.14 * full)
        sheet.multiply(fold, (0.86, 0.8, 0.8), soft=3.5)
        seam = np.concatenate([g.upper_inner - (0, 2.2), g.lower_inner[::-1] - (0, -2.2)])
        sheet.multiply(seam, (0.42, 0.33, 0.33), soft=1.6)
        if g.gap > 2.5:
            self._cavity(sheet, mouth, g)

    def _cavity(self, sheet: Sheet, mouth: MouthShape, g: LipGeometry) -> None:
        """The inside of the mouth: darkness, tongue, teeth; all in the shadow of the lips."""
        p = self.person
        aperture = np.concatenate([g.upper_inner, g.lower_inner[::-1]])
        area, window = sheet.mask(aperture, 0.8)
        density = sheet.density
        left, top = sheet.extent[0] + window[1].start / density, sheet.extent[1] + window[0].start / density
        inside = Sheet(
            (left, top, left + area.shape[1] / density, top + area.shape[0] / density), density, (34, 10, 11)
        )
        light = 0.35 + 0.6 * p.exposure
        half = float(g.upper_inner[-1, 0])
        low = float(g.lower_inner[8, 1])
        tongue_y = low + 10 - (0.42 * g.gap + 4) * (0.35 + 0.65 * mouth.tongue)
        inside.polygon(ellipse(0, tongue_y + 14, 0.62 * half, 18), np.array([150, 66, 66]) * light * 0.85, 0.9, 4)
        bite = min(0.62 * g.gap, 9 + 7 * mouth.teeth)  # upper teeth hang from the upper lip
        teeth = p.teeth * light * p.tint
        inside.polygon(_row(g.upper_inner, half, bite, +1), teeth * 0.86, 0.95, 1.6)
        lower_bite = min(0.25 * g.gap, 3 + 7 * mouth.teeth)
        inside.polygon(_row(g.lower_inner, 0.8 * half, lower_bite, -1), teeth * 0.62, 0.85, 1.8)
        inside.multiply(_row(g.upper_inner, half, 5, +1), (0.6, 0.55, 0.55), soft=2.5)
        depth = np.abs(inside.x / max(half, 1e-3))[None, :, None]
        inside.rgb *= 1 - 0.75 * np.clip(depth, 0, 1) ** 3
        sheet.blend(area, inside.rgb, window)


def _row(edge: Points, half: float, height: float, direction: int) -> Points:
    """A row of teeth: from the edge of a lip, `height` long in the middle and shorter towards the corners."""
    u = np.clip(edge[:, 0] / max(half, 1e-3), -1, 1)
    reach = np.stack([np.zeros(len(edge)), direction * height * (1 - 0.75 * u**4)], 1)
    return np.concatenate([edge - (0, 3 * direction), (edge + reach)[::-1]])
