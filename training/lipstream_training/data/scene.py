"""The scene behind and below the face: background, hair behind the neck, neck, shoulders, clothing."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .head import hair_colour
from .identity import Identity
from .sheet import Sheet, curve, ellipse, mirrored, ramp, smooth_noise, stroke


def paint_scene(
    person: Identity, extent: tuple[float, float, float, float], density: float, rng: np.random.Generator
) -> Sheet:
    """The picture without the head, over `extent` in face units."""
    sheet = Sheet(extent, density)
    _background(sheet, rng)
    if person.hair_style in (3, 4):
        _back_hair(person, sheet, rng)
    _neck(person, sheet)
    _clothing(person, sheet, rng)
    np.clip(sheet.rgb, 0, 255, out=sheet.rgb)
    return sheet


def _background(sheet: Sheet, rng: np.random.Generator) -> None:
    x0, y0, x1, y1 = sheet.extent
    across = np.linspace(0, 1, sheet.width, dtype=np.float32)[None, :, None]
    down = np.linspace(0, 1, sheet.height, dtype=np.float32)[:, None, None]
    corners = rng.uniform(10, 245, (2, 2, 3)) * 0.5 + rng.uniform(10, 245, 3) * 0.5
    corners = _muted(corners, rng)
    a, b = corners[0, 0] * (1 - across) + corners[0, 1] * across, corners[1, 0] * (1 - across) + corners[1, 1] * across
    sheet.rgb = np.asarray(a * (1 - down) + b * down, np.float32)
    soft = float(rng.choice([0, 4, 15, 40]))
    for _ in range(int(rng.integers(0, 14))):
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        w, h = rng.uniform(15, 260, 2)
        colour = _muted(rng.uniform(0, 255, 3), rng)
        kind = rng.integers(3)
        if kind == 0:
            sheet.polygon(ellipse(x, y, w / 2, h / 2), colour, rng.uniform(0.3, 1))
        elif kind == 1:
            sheet.polygon([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], colour, rng.uniform(0.3, 1))
        else:  # blinds, shelves, stripes
            for i in range(5):
                top = y + i * h / 4
                sheet.polygon([(x, top), (x + w, top), (x + w, top + h / 9), (x, top + h / 9)], colour, 0.8)
    if soft:
        sheet.rgb = np.asarray(cv2.GaussianBlur(sheet.rgb, (0, 0), soft * sheet.density), np.float32)
    grain = smooth_noise((sheet.height, sheet.width), (2, 2), rng) * rng.uniform(0, 4)
    sheet.rgb += grain[..., None]


def _back_hair(p: Identity, sheet: Sheet, rng: np.random.Generator) -> None:
    reach, low = (p.cheek + 18, 600.0) if p.hair_style == 3 else (p.cheek + 40, 300.0)
    right = [(0, low), (0.72 * reach, low - 8), (reach + 6, 0.6 * low), (reach, 120), (0.9 * reach, -20), (0, -120)]
    area, window = sheet.mask(curve(mirrored(right), closed=True), 4)
    sheet.blend(area, hair_colour(p, sheet, rng)[window] * 0.72, window)


def _neck(p: Identity, sheet: Sheet) -> None:
    lit, wide = p.shaded_skin, 0.74 * p.jaw
    base = p.chin_y + 150
    right = [
        (0, base + 60),
        (wide + 75, base + 40),
        (wide + 14, base - 20),
        (wide, base - 90),
        (wide + 4, 320),
        (0, 300),
    ]
    outline = curve(mirrored(right), closed=True)
    area, window = sheet.mask(outline, 1.5)
    across = np.clip(sheet.x[window[1]] / wide, -1.4, 1.4)
    round_ = 1 - 0.42 * np.clip(np.abs(across - 0.3 * float(p.light[0])), 0, 1.4) ** 2
    side = 1 + 0.5 * (1 - p.ambient) * across * float(p.light[0])
    under = 0.5 + 0.5 * ramp(sheet.y[window[0]], p.chin_y - 10, p.chin_y + 105)  # the shadow of the chin
    shade = np.clip(under[:, None] * (round_ * side)[None], 0.12, 1.1)[..., None] ** np.array([0.85, 1.02, 1.1])
    sheet.blend(area, (lit * shade).astype(np.float32), window)
    for side_ in (-1, 1):
        cord = [(side_ * wide * 0.7, p.chin_y + 30), (side_ * 18, base + 20)]
        sheet.multiply(stroke(curve(cord), 12), (0.88, 0.84, 0.83), soft=6)


def _clothing(p: Identity, sheet: Sheet, rng: np.random.Generator) -> None:
    base, wide = p.chin_y + 118, 0.74 * p.jaw
    cloth = _muted(rng.uniform(8, 235, 3), rng) * rng.uniform(0.3, 1)
    span, bottom = rng.uniform(330, 430), max(sheet.extent[3] + 40, base + 320)
    vee = rng.uniform(10, 120)
    right = [
        *[(0, base + vee), (0.55 * wide, base + 0.45 * vee), (wide + 6, base - 22), (wide + 60, base + 14)],
        *[(0.75 * span, base + 62), (span, base + 150), (span + 30, bottom), (0, bottom)],
    ]
    outline = mirrored(curve(right[:-1]))
    area, window = sheet.mask(outline, 1.5)
    folds = 1 + 0.06 * smooth_noise(area.shape, (90 * sheet.density, 26 * sheet.density), rng) if area.size else area
    lit = (p.exposure * folds)[..., None] * p.tint
    if rng.random() < 0.3 and area.size:  # stripes
        lit = lit * np.where(np.sin(sheet.y[window[0]] / rng.uniform(3, 12)) > 0.2, 1.0, 0.72)[:, None, None]
    sheet.blend(area, np.clip(cloth * lit, 0, 255).astype(np.float32), window)
    if rng.random() < 0.5:  # collar
        collar = np.clip(cloth * rng.uniform(0.5, 1.5) + rng.uniform(0, 60), 0, 250) * p.exposure
        for side in (-1, 1):
            points = [
                (wide + 12, base - 40),
                (wide + 34, base - 8),
                (0.5 * wide, base + 62),
                (4, base + 26 + 0.5 * vee),
            ]
            sheet.polygon(np.array(points) * (side, 1), collar, 1, 1)


def _muted(colour: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """`colour` with random, lower saturation: random colours are more saturated than those of real pictures."""
    share = rng.uniform(0.35, 0.95)
    return np.asarray(colour * (1 - share) + colour.mean(-1, keepdims=True) * share)
