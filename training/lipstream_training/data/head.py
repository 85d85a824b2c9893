"""A head without a moving mouth: relief, light, skin, features and hair, painted once per clip.

The relief is a height field; its normals under one lamp and ambient light give the shading, so cheeks, nose, lips and
chin are shaded as in a photograph for every direction of the light.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .identity import Identity
from .sheet import Image, Points, Sheet, curve, ellipse, mirrored, ramp, smooth_noise, stroke

HEAD_EXTENT = (-270.0, -200.0, 270.0, 600.0)
"""The rectangle of a head sheet, in face units."""


@dataclass(frozen=True)
class Head:
    """A painted head.

    Attributes:
        sheet: its rgb is float32 [h, w, 4], premultiplied by the coverage in the fourth channel (0..255).
        shade: float32 [h, w, 3] light on the skin, 1 = the skin's own colour.
        depth: float32 [h, w], towards the camera, in face units.
        closed_eyes: float32 [rows, columns, 4], replaces `eyes` in a blink.
        eyes: window of the sheet around the eyes.
    """

    sheet: Sheet
    shade: Image
    depth: Image
    closed_eyes: Image
    eyes: tuple[slice, slice]


def paint_head(person: Identity, density: float, rng: np.random.Generator) -> Head:
    """Paint `person` at `density` pixels per face unit. `rng` decides only skin and hair texture."""
    sheet = Sheet(HEAD_EXTENT, density)
    cover = np.zeros((sheet.height, sheet.width), np.float32)
    relief, depth = _relief(person, sheet)
    shade = _shading(person, relief, density)

    _ears(person, sheet, cover)
    face, window = sheet.mask(face_outline(person), 1.5)
    sheet.blend(face, _skin(person, sheet, shade, rng)[window], window)
    cover[window] = np.maximum(cover[window], face)
    _creases(person, sheet)
    _nose(person, sheet)
    _beard(person, sheet, shade, rng)
    _brows(person, sheet, rng)
    _hair(person, sheet, cover, shade, rng)

    eyes = sheet.window(-150, person.eye_y - 48, 150, person.eye_y + 48)
    lids = Sheet(HEAD_EXTENT, density)
    lids.rgb = sheet.rgb.copy()
    _closed_eyes(person, lids)
    _open_eyes(person, sheet)
    if person.glasses:
        for each in (sheet, lids):
            _glasses(person, each)
    alpha = cover[..., None]
    closed = np.concatenate([lids.rgb[eyes] * alpha[eyes], alpha[eyes] * 255], axis=2)
    sheet.rgb = np.concatenate([sheet.rgb * alpha, alpha * 255], axis=2)
    return Head(sheet, shade, depth, closed, eyes)


def face_outline(person: Identity) -> Points:
    """Outline of the face from chin to crown, closed."""
    p = person
    chin, jaw_y = p.chin_y, 0.5 * (p.chin_y + p.mouth_y) - 10
    right = [
        (0, chin),
        (p.chin_width, chin - 4),
        (0.5 * (p.chin_width + p.jaw), 0.62 * chin + 0.38 * jaw_y),
        (p.jaw, jaw_y),
        (0.5 * (p.jaw + p.cheek) + 8, 300),
        (p.cheek, 215),
        (p.cheek - 3, 140),
        (p.forehead, 50),
        (0.84 * p.forehead, -30),
        (0.55 * p.forehead, -88),
        (0, -112),
    ]
    return curve(mirrored(right), closed=True)


def brow_line(person: Identity, side: int) -> Points:
    """Upper edge of a brow, [n, 2] from its inner to its outer end; side -1 left of the picture, +1 right."""
    p, x = person, person.brow_x
    half, tilt = 53.0, side * p.asymmetry
    points = [(x - half, 3.0), (x - 0.4 * half, -3.0), (x + 0.15 * half, -0.2 * p.brow_arch - 4), (x + half, 12.0)]
    line = curve([(side * u, p.brow_y + v + tilt) for u, v in points])
    line[:, 1] += p.brow_y + tilt - line[:, 1].mean()
    return line


def _bump(sheet: Sheet, x: float, y: float, wide: float, high: float, both: bool = False) -> Image:
    """Gaussian hill at (x, y), on both sides of the midline if asked."""
    across = np.exp(-0.5 * ((sheet.x - x) / wide) ** 2)
    if both:
        across = across + np.exp(-0.5 * ((sheet.x + x) / wide) ** 2)
    return np.outer(np.exp(-0.5 * ((sheet.y - y) / high) ** 2), across).astype(np.float32)


def _relief(p: Identity, sheet: Sheet) -> tuple[Image, Image]:
    """Heights for the shading, and a smoother version (depth) for turning the head."""
    x, y = sheet.x[None], sheet.y[:, None]
    wide = np.interp(sheet.y, [-120, 50, 215, 330, p.chin_y + 20], [150, 185, 214, 212, 198]).astype(np.float32)[
        :, None
    ]
    radius = (x / (wide * p.cheek / 188)) ** 2 + ((y - 170) / np.where(y < 170, 320, 345)) ** 2
    # A sphere-like edge with a finite slope.
    dome = (
        np.where(radius < 0.94, np.sqrt(np.clip(1 - radius, 0.06, 1)), 0.245 - 2.0 * (radius - 0.94)).astype(np.float32)
        * 165
    )
    bridge = ramp(y, 120, p.nose_y) * (1 - ramp(y, p.nose_y + 6, p.nose_y + 26))
    ridge = 9 + 13 * ramp(y, 150, p.nose_y)
    nose = p.nose_height * bridge * np.exp(-0.5 * (x / ridge) ** 2)
    z = dome + nose.astype(np.float32)
    z += 0.42 * p.nose_height * _bump(sheet, 0.62 * p.nose_width, p.nose_y + 3, 11, 11, both=True)
    z += (6 + 4 * p.age) * _bump(sheet, 72, p.brow_y + 14, 48, 15, both=True)
    z -= 17 * _bump(sheet, p.eye_x - 6, p.eye_y - 4, 36, 19, both=True)
    z += 10 * _bump(sheet, p.eye_x, p.eye_y + 2, 26, 13, both=True)
    z += 15 * _bump(sheet, 108, 238, 42, 34, both=True)
    z -= (3 + 5 * p.age) * _bump(sheet, 122, 322, 26, 34, both=True)
    z += 15 * _bump(sheet, 0, p.mouth_y - 6, 58, 38)
    z -= 4 * _bump(sheet, 0, p.nose_y + 38, 7, 16)
    z -= 8 * _bump(sheet, 0, p.mouth_y + p.lower_lip + 16, 34, 10)
    z += 13 * _bump(sheet, 0, p.chin_y - 28, 32, 24)
    z += 5 * _bump(sheet, 88, 20, 50, 34, both=True)
    depth = 120 * np.clip(1 - radius, 0, 1) + 0.8 * nose
    return z, cv2.GaussianBlur(depth.astype(np.float32), (0, 0), 8 * sheet.density)


def _shading(p: Identity, relief: Image, density: float) -> Image:
    smooth = cv2.GaussianBlur(relief, (0, 0), 2.2 * density)
    slope_x = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=density / 8)
    slope_y = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=density / 8)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    facing = (-slope_x * p.light[0] - slope_y * p.light[1] + p.light[2]) / length
    half = p.light + np.array([0, 0, 1], np.float32)
    half = half / np.linalg.norm(half)
    glint = np.clip((-slope_x * half[0] - slope_y * half[1] + half[2]) / length, 0, 1) ** 24
    hollow = np.clip((smooth - cv2.GaussianBlur(smooth, (0, 0), 16 * density)) / 22, -1, 0.4)
    light = p.ambient * (0.78 + 0.22 / length) + (1 - p.ambient) * np.clip(facing, 0, 1) * 1.15
    light = light * (1 + 0.3 * hollow)
    # Subsurface scattering: shadows keep more red than blue.
    tinted = np.clip(light, 0.06, 1.4)[..., None] ** np.array([0.85, 1.02, 1.1], np.float32)
    return np.asarray(tinted + (0.35 * p.shine * glint)[..., None], np.float32) * np.float32(p.exposure) * p.tint


def _skin(p: Identity, sheet: Sheet, shade: Image, rng: np.random.Generator) -> Image:
    shape = (sheet.height, sheet.width)
    colour = np.ones((*shape, 3), np.float32) * p.skin
    red = p.blush * (_bump(sheet, 110, 250, 42, 34, both=True) + 0.7 * _bump(sheet, 0, p.nose_y, 30, 22))
    red += 0.03 * smooth_noise(shape, (24 * sheet.density, 24 * sheet.density), rng)
    colour *= 1 + red[..., None] * np.array([0.25, -0.6, -0.5], np.float32)
    tired = (0.06 + 0.12 * p.age) * _bump(sheet, p.eye_x - 8, p.eye_y + 20, 30, 9, both=True)
    colour *= 1 - tired[..., None] * np.array([0.8, 1.1, 0.9], np.float32)
    pores = smooth_noise(shape, (1.5, 1.5), rng) * (0.008 + 0.018 * p.age)
    patches = smooth_noise(shape, (9 * sheet.density, 9 * sheet.density), rng) * 0.012
    colour *= (1 + pores + patches)[..., None]
    if p.freckles:
        spots = ramp(smooth_noise(shape, (4 * sheet.density, 4 * sheet.density), rng), 1.3, 2.2)
        spots *= p.freckles * (_bump(sheet, 75, 235, 60, 40, both=True) + _bump(sheet, 0, 225, 40, 40))
        colour *= 1 - np.clip(spots, 0, 1)[..., None] * np.array([0.18, 0.28, 0.34], np.float32)
    return colour * shade


def _creases(p: Identity, sheet: Sheet) -> None:
    """Nasolabial folds, lines of age, the shadow under the lower lip."""
    for side in (-1, 1):
        fold = curve([(p.nose_width + 2, p.nose_y + 6), (82, p.mouth_y - 45), (p.mouth_width + 26, p.mouth_y - 4)])
        sheet.multiply(stroke(fold * (side, 1), 9), np.full(3, 0.92 - 0.2 * p.age), soft=4)
        bag = curve([(p.eye_x - 34, p.eye_y + 16), (p.eye_x - 4, p.eye_y + 27), (p.eye_x + 28, p.eye_y + 20)])
        sheet.multiply(stroke(bag * (side, 1), 6), np.full(3, 0.96 - 0.16 * p.age), soft=2.5)
        if p.age > 0.55:
            frown = [(side * 14, p.brow_y - 8), (side * 16, p.brow_y + 18)]
            sheet.multiply(stroke(curve(frown), 4), np.full(3, 0.88), soft=2)
    if p.age > 0.6:
        for y in (38.0, 60.0):
            wave = [(-100, y + 4), (-40, y), (30, y + 2), (105, y + 6)]
            sheet.multiply(stroke(curve(wave), 4), np.full(3, 1.05 - 0.2 * p.age), soft=2)
    below = ellipse(0, p.mouth_y + p.lower_lip + 12, 36, 7)
    sheet.multiply(below, (0.84, 0.78, 0.76), soft=5)


def _nose(p: Identity, sheet: Sheet) -> None:
    y, wide = p.nose_y, p.nose_width
    cast = -np.sign(p.light[0]) * min(1.0, abs(float(p.light[0])) * 2.2) * (1 - p.ambient)
    if abs(cast) > 0.1:  # the nose throws a shadow away from the lamp
        side = np.sign(cast)
        shadow = curve(
            [(side * 14, 175), (side * 24, y - 25), (side * (wide + 14), y + 8), (side * 12, y + 22)], closed=True
        )
        sheet.multiply(shadow, np.full(3, 1 - 0.55 * abs(cast)), soft=7)
    under = curve([(-wide * 0.8, y + 14), (0, y + 19), (wide * 0.8, y + 14), (0, y + 34)], closed=True)
    sheet.multiply(under, (0.80, 0.72, 0.70), soft=6)
    for side in (-1, 1):
        wing = curve([(wide - 4, y - 18), (wide + 3, y - 2), (wide - 2, y + 13), (wide - 14, y + 17)])
        sheet.multiply(stroke(wing * (side, 1), 6), (0.72, 0.62, 0.6), soft=2.5)
        hole = ellipse(side * 0.44 * wide, y + 14, 0.21 * wide, 5.5, side * 0.35)
        sheet.polygon(hole, p.shaded_skin * (0.3, 0.2, 0.18), alpha=0.85, soft=2)


def _beard(p: Identity, sheet: Sheet, shade: Image, rng: np.random.Generator) -> None:
    if max(p.beard, p.moustache, p.stubble) == 0:
        return
    shape = (sheet.height, sheet.width)
    grain = 1 + 0.3 * smooth_noise(shape, (5 * sheet.density, 1.6), rng)
    x, y = np.abs(sheet.x)[None], sheet.y[:, None]
    lip = 16.0 + p.upper_lip
    around_mouth = 1 - ramp(((x / (p.mouth_width + 12)) ** 2 + ((y - p.mouth_y - 4) / (lip + 12)) ** 2), 0.75, 1.1)
    top = np.interp(sheet.x.__abs__(), [0, 70, 110, 150, 200], [p.mouth_y + 10, p.mouth_y + 6, 330, 262, 170])
    jaw = ramp(y, top[None] - 4, top[None] + 26) * (1 - around_mouth)
    tache = ramp(y, p.nose_y + 26, p.nose_y + 40) * (1 - ramp(y, p.mouth_y - 4, p.mouth_y + 12))
    reach = np.interp(sheet.y, [p.nose_y + 24, p.mouth_y - 4], [16, p.mouth_width])[:, None]
    tache = tache * (1 - ramp(x, reach - 4, reach + 14))
    hairy = np.maximum(p.beard * jaw, max(p.moustache, 0.75 * p.beard) * tache)
    colour = np.clip(p.hair * grain[..., None] * shade, 0, 255)
    shadowy = 0.45 * p.stubble * np.maximum(jaw, tache) * np.clip(grain, 0.4, 1.6)
    rgb = sheet.rgb
    rgb += (np.minimum(p.hair, 70) * shade - rgb) * shadowy[..., None]
    rgb += (colour - rgb) * np.clip(0.92 * hairy * (0.8 + 0.35 * grain), 0, 0.96)[..., None]


def _brows(p: Identity, sheet: Sheet, rng: np.random.Generator) -> None:
    dim = 0.35 + 0.65 * p.exposure
    for side in (-1, 1):
        line = brow_line(p, side)
        along = np.linspace(0, 1, len(line))
        thick = p.brow_thickness * np.interp(along, [0, 0.15, 0.6, 1], [0.75, 1.0, 0.8, 0.12])
        lower = line + np.stack([np.zeros_like(thick), thick], 1)
        sheet.polygon(np.concatenate([line, lower[::-1]]), p.brow * dim, alpha=0.62, soft=3)
        for t in rng.uniform(0, 0.95, 26):  # single hairs
            i = int(t * (len(line) - 1))
            root = lower[i] * 0.85 + line[i] * 0.15
            tip = line[i] + (side * rng.uniform(4, 16), rng.uniform(-3, 3))
            sheet.polygon(stroke([root, (root + tip) / 2, tip], 4.0), p.brow * dim * rng.uniform(0.6, 1.1), 0.5, 0.8)


def _lid(p: Identity, side: int) -> tuple[Points, Points]:
    """Upper and lower edge of the open eye, inner to outer corner."""
    x, y, w, h = p.eye_x, p.eye_y, p.eye_width, p.eye_height
    rise = p.eye_tilt * w
    inner, outer = (x - w, y + 3 + rise), (x + w, y - rise)
    upper = curve([inner, (x - 0.45 * w, y - 0.85 * h), (x + 0.2 * w, y - h - 1), (x + 0.72 * w, y - 0.6 * h), outer])
    lower = curve([inner, (x - 0.4 * w, y + 0.72 * h), (x + 0.3 * w, y + 0.85 * h), outer])
    return upper * (side, 1), lower * (side, 1)


def _open_eyes(p: Identity, sheet: Sheet) -> None:
    white = np.array([228, 222, 216], np.float32) * (0.30 + 0.55 * p.exposure) * p.tint
    for side in (-1, 1):
        upper, lower = _lid(p, side)
        almond = np.concatenate([upper, lower[::-1]])
        area, window = sheet.mask(almond, 0.8)
        eye = Sheet(HEAD_EXTENT, sheet.density)
        eye.rgb[:] = white
        x, y = side * p.eye_x, p.eye_y - 1.5
        radius = 15.5
        eye.polygon(ellipse(x, y, radius, radius), p.iris * 0.55 * (0.4 + 0.6 * p.exposure), 1, 1)
        eye.polygon(ellipse(x, y + 1, radius * 0.78, radius * 0.78), p.iris * (0.4 + 0.6 * p.exposure), 1, 1.5)
        eye.polygon(ellipse(x, y, 6.5, 6.5), (12, 10, 10), 1, 0.8)
        eye.multiply(stroke(upper - (0, -3), 12), (0.5, 0.48, 0.48), soft=2.5)
        glint = (x + 6 * np.sign(p.light[0] + 1e-3), y - 5)
        eye.polygon(ellipse(*glint, 3, 3), np.full(3, 250) * min(1.0, p.exposure), 0.9, 0.6)
        corner = almond[0]
        eye.polygon(ellipse(corner[0] + side * 3, corner[1], 4, 3), p.shaded_skin * (0.9, 0.6, 0.58), 0.8, 1.5)
        sheet.multiply(stroke(upper - (0, 9), 8), (0.78, 0.70, 0.68), soft=3)  # crease of the lid
        sheet.blend(area, eye.rgb[window], window)
        sheet.line(upper, 5.5, p.shaded_skin * 0.16, 0.9, 0.9)
        sheet.line(lower, 3.0, p.shaded_skin * (0.5, 0.36, 0.34), 0.55, 1.2)


def _closed_eyes(p: Identity, sheet: Sheet) -> None:
    for side in (-1, 1):
        upper, lower = _lid(p, side)
        sheet.multiply(stroke(upper - (0, 6), 7), (0.86, 0.8, 0.78), soft=3)
        sheet.line(lower - (0, 2), 5.5, p.shaded_skin * (0.24, 0.18, 0.17), 0.85, 1.2)


def _ears(p: Identity, sheet: Sheet, cover: Image) -> None:
    for side in (-1, 1):
        lit = 1 + 0.35 * side * float(p.light[0]) * (1 - p.ambient)
        x = side * (p.cheek + 4)
        for points, factor, soft in (
            (ellipse(x, 215, 22, 48, -side * 0.12), 0.86, 1.5),
            (ellipse(x + side * 2, 210, 11, 30, -side * 0.12), 0.66, 4.0),
        ):
            area, window = sheet.mask(points, soft)
            sheet.blend(area, p.shaded_skin * factor * lit, window)
            cover[window] = np.maximum(cover[window], area)


def hair_colour(p: Identity, sheet: Sheet, rng: np.random.Generator) -> Image:
    """Hair in its light over a whole sheet, [h, w, 3]: strands, or curls for curly hair."""
    curls = p.hair_style == 4
    grain = (7 * sheet.density, 7 * sheet.density) if curls else (60 * sheet.density, 3 * sheet.density)
    strands = smooth_noise((sheet.height, sheet.width), grain, rng)
    side = 1 + 0.35 * (1 - p.ambient) * np.clip(sheet.x / 200, -1, 1) * float(p.light[0])
    top = 1 + 0.25 * _bump(sheet, 60 * float(p.light[0]), -110, 120, 45)
    light = (1 + (0.2 if curls else 0.11) * strands) * side[None] * top * (0.35 + 0.6 * p.exposure)
    return np.asarray(np.clip(p.hair * light[..., None] * p.tint, 4, 250), np.float32)


def _hair(p: Identity, sheet: Sheet, cover: Image, shade: Image, rng: np.random.Generator) -> None:
    """Hair on and beside the head; hair behind it belongs to the scene."""
    if p.hair_style == 0:
        cropped = 0.28 * (1 - ramp(sheet.y, p.hairline - 60, p.hairline + 10))[:, None] * np.ones_like(sheet.x)
        sheet.rgb += (p.hair * shade - sheet.rgb) * cropped[..., None]
        return
    thick = (0.0, 8.0, 26.0, 24.0, 46.0, 24.0)[p.hair_style]
    low = (0.0, 190.0, 225.0, 330.0, 210.0, 150.0)[p.hair_style]
    edge, temple = p.cheek + 0.55 * thick, p.hairline
    outer = [
        *[(edge - 8, low), (edge + 4, 0.5 * low + 50), (edge, 60), (0.9 * edge, -30)],
        *[(0.62 * edge, -92 - thick), (0, -116 - thick)],
    ]
    inner = [
        *[(0, temple), (0.5 * p.forehead, temple + 12 - 10 * p.age), (0.84 * p.forehead, temple + 52)],
        *[(p.forehead + 6, 112), (p.cheek - 6, 0.6 * low + 50), (p.cheek - 3, low)],
    ]
    if p.hair_style == 3:  # strands hanging over the side of the face
        inner[-3:] = [(p.forehead + 2, 120), (p.cheek - 14, 230), (p.cheek - 6, low)]
    right, left = np.array(outer, np.float64), np.array(outer[::-1], np.float64) * (-1, 1)
    fringe_right = np.array(inner[::-1], np.float64)
    fringe_left = np.array(inner, np.float64) * (-1, 1)
    if p.hair_style in (2, 3):  # parted to one side
        fringe_right[:, 1] += 16 * max(0.0, p.parting) * np.exp(-((fringe_right[:, 0] / 90) ** 2))
        fringe_left[:, 1] += 16 * max(0.0, -p.parting) * np.exp(-((fringe_left[:, 0] / 90) ** 2))
    outline = np.concatenate([curve(right), curve(left), curve(fringe_left[::-1]), curve(fringe_right[::-1])])
    if p.hair_style == 4:
        outline = outline + rng.normal(0, 3.0, outline.shape)
    shadow, window = sheet.mask(outline - (0, -9), 8)  # hair shades the forehead
    sheet.rgb[window] *= 1 - 0.35 * shadow[..., None]
    area, window = sheet.mask(outline, 3.5 if p.hair_style != 5 else 1.5)
    colour = hair_colour(p, sheet, rng)[window]
    if p.hair_style == 5:
        colour = np.clip(p.cover * (0.5 + 0.5 * shade[window]), 0, 255)
    sheet.blend(area, colour, window)
    cover[window] = np.maximum(cover[window], area)


def _glasses(p: Identity, sheet: Sheet) -> None:
    thickness = 4.0 if p.glasses == 1 else 9.0
    frame = np.array([30, 28, 30]) if p.glasses == 2 else p.cover * 0.5
    for side in (-1, 1):
        x, y = side * (p.eye_x + 3), p.eye_y + 8
        corners = [(-52, -26), (0, -31), (52, -28), (50, 14), (6, 34), (-44, 20)]
        rim = curve([(x + side * u, y + v) for u, v in corners], closed=True)
        outer, window = sheet.mask(rim, 0.6)
        inner, inner_window = sheet.mask((rim - (x, y)) * (1 - thickness / 45) + (x, y), 0.6)
        sheet.blend(inner * 0.05, (255, 255, 255), inner_window)
        ring = outer.copy()
        rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner_window, window, strict=True))
        ring[rows, columns] -= inner
        sheet.blend(np.clip(ring, 0, 1) * 0.92, frame, window)
        arm = [(x + side * 50, y - 20), (side * (p.cheek + 6), y - 14)]
        sheet.line(curve(arm), thickness, frame, 0.9, 0.6)
    sheet.line(
        curve([(-p.eye_x + 48, p.eye_y), (0, p.eye_y - 8), (p.eye_x - 48, p.eye_y)]), thickness, frame, 0.92, 0.6
    )
