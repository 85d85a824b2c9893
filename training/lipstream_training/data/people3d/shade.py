"""The colour of every pixel: surfaces, shadow, light that passes through skin, wet teeth and lips."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .asset import EYE, SKIN, TONGUE, UPPER_TEETH
from .compiled import compiled
from .look import Look
from .noise import at

OCCLUSION, INNER, BEARD, BLUSH, CLOTH, SCALP, BROW = range(7)
"""Columns of a person's map of the skin: open to light from all sides, inside of the mouth, then where things are."""

_LOWER_TEETH = UPPER_TEETH + 1
_EYE_X, _EYE_Y, _EYE_FRONT = 0.30775, 7.284, 1.2  # of the eyeballs in the shared head
_LIP_HALO = (0.16, 0.04, 0.02)  # light that reaches shadows through skin
_WRAP = (0.38, 0.16, 0.10)  # how far light runs round an edge of skin
_BOUNCE = (0.20, 0.08, 0.06)  # what hollows of skin get back from themselves


@compiled
def shade(
    ids: NDArray[np.int32],
    depth: NDArray[np.float32],
    screen: NDArray[np.float32],
    vertices: NDArray[np.float32],
    directions: NDArray[np.float32],
    rest: NDArray[np.float32],
    triangles: NDArray[np.int32],
    texture: NDArray[np.float32],
    parts: NDArray[np.int8],
    skin_map: NDArray[np.float32],
    lip_texture: NDArray[np.uint8],
    coarse: NDArray[np.float32],
    fine: NDArray[np.float32],
    look: Look,
    around: NDArray[np.float64],
    lamp_direction: NDArray[np.float64],
    lamp: NDArray[np.float64],
    shadow: NDArray[np.float32],
    to_shadow: NDArray[np.float64],
    eye: NDArray[np.float64],
    scale: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Linear RGB float32 [H, W, 3] and coverage float32 [H, W] of what `rasterise` found.

    Args:
        ids, depth: see `rasterise`. screen: its vertices.
        vertices, directions: in the scene, and their normals. rest: of the shared head, where patterns are fixed.
        skin_map: float32 [V, 7].
        shadow, to_shadow: depth seen from the lamp, and the map [3, 4] there.
        eye: position of the camera. scale: pixels per decimetre at the face.
    """
    height, width = ids.shape
    colours = np.zeros((height, width, 3), np.float32)
    coverage = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            i = ids[y, x]
            if i < 0:
                continue
            coverage[y, x] = 1
            a, b, c = triangles[i, 0], triangles[i, 1], triangles[i, 2]
            area = (screen[b, 0] - screen[a, 0]) * (screen[c, 1] - screen[a, 1]) - (screen[b, 1] - screen[a, 1]) * (
                screen[c, 0] - screen[a, 0]
            )
            u = ((screen[b, 0] - x) * (screen[c, 1] - y) - (screen[b, 1] - y) * (screen[c, 0] - x)) / area
            v = ((screen[c, 0] - x) * (screen[a, 1] - y) - (screen[c, 1] - y) * (screen[a, 0] - x)) / area
            w = 1 - u - v
            nx, ny, nz = _mix3(directions, a, b, c, u, v, w)
            px, py, pz = _mix3(vertices, a, b, c, u, v, w)
            rx, ry, rz = _mix3(rest, a, b, c, u, v, w)
            open_sky = _mix(skin_map, a, b, c, u, v, w, OCCLUSION)
            part = parts[i]
            large, middle = at(coarse, rx * 5, ry * 5, rz * 5), at(coarse, rx * 17 + 3, ry * 17, rz * 17)
            small = at(fine, rx * 60, ry * 60, rz * 60)
            in_mouth = 1.0
            if part == SKIN:
                s = u * texture[i, 0, 0] + v * texture[i, 1, 0] + w * texture[i, 2, 0]
                t = u * texture[i, 0, 1] + v * texture[i, 1, 1] + w * texture[i, 2, 1]
                lip = _texel(lip_texture, s, t)
                inner = _mix(skin_map, a, b, c, u, v, w, INNER)
                beard = _mix(skin_map, a, b, c, u, v, w, BEARD)
                blush = _mix(skin_map, a, b, c, u, v, w, BLUSH)
                cloth = _mix(skin_map, a, b, c, u, v, w, CLOTH)
                scalp = _mix(skin_map, a, b, c, u, v, w, SCALP)
                brow = _mix(skin_map, a, b, c, u, v, w, BROW)
                r, g, bl, gloss, rough, through = _skin(
                    look, lip, inner, beard, blush, cloth, scalp, brow, large, middle, small, rx, ry
                )
                in_mouth = min(1.0, inner)
            elif part in (UPPER_TEETH, _LOWER_TEETH):
                r, g, bl = _tooth(look, part == UPPER_TEETH, rx, ry, rz)
                gloss, rough, through = 0.35, 0.18, 0.3
            elif part == TONGUE:
                wet = 1 + 0.15 * middle + 0.12 * small
                r, g, bl = 0.52 * wet, 0.21 * wet, 0.20 * wet
                gloss, rough, through = 0.22, 0.3, 1.0
            elif part == EYE:
                r, g, bl = _eye(look, rx, ry, rz)
                gloss, rough, through, in_mouth = 0.6, 0.06, 0.0, 0.0
                open_sky *= 0.8
            else:
                strand = 1 + 0.25 * at(fine, rx * 40, ry * 4, rz * 40) + 0.2 * middle
                r, g, bl = look.hair[0] * strand, look.hair[1] * strand, look.hair[2] * strand
                gloss, rough, through, in_mouth = 0.12, 0.35, 0.1, 0.0
            seen = 1.0
            if in_mouth > 0.01:
                dark = _hidden(depth, x, y, scale) ** (1.1 if part == UPPER_TEETH else 1.4)
                seen = 1 - in_mouth * (1 - dark)

            nx += look.pores * (small - at(fine, rx * 60 + 0.7, ry * 60, rz * 60))
            ny += look.pores * (small - at(fine, rx * 60, ry * 60 + 0.7, rz * 60))
            nx, ny, nz = _unit(nx, ny, nz)
            lit = _lit(shadow, to_shadow, px, py, pz)
            towards = nx * lamp_direction[0] + ny * lamp_direction[1] + nz * lamp_direction[2]
            vx, vy, vz = _unit(eye[0] - px, eye[1] - py, eye[2] - pz)
            hx, hy, hz = _unit(vx + lamp_direction[0], vy + lamp_direction[1], vz + lamp_direction[2])
            half = max(0.0, nx * hx + ny * hy + nz * hz)
            facing = max(0.05, nx * vx + ny * vy + nz * vz)
            sharpness = 2 / (rough * rough)
            highlight = half**sharpness * (sharpness + 2) * 0.04 * max(0.0, towards) * lit
            grazing = (1 - facing) ** 4
            for channel in range(3):
                wrap = _WRAP[channel] * through
                direct = max(0.0, (towards + wrap) / (1 + wrap))
                direct = direct * direct * wrap + direct * (1 - wrap)
                reached = lit + (1 - lit) * _LIP_HALO[channel] * through
                sky = (
                    around[0, channel]
                    + around[1, channel] * ny
                    + around[2, channel] * nz
                    + around[3, channel] * nx
                    + around[4, channel] * nx * ny
                    + around[5, channel] * ny * nz
                    + around[6, channel] * (3 * nz * nz - 1)
                    + around[7, channel] * nx * nz
                    + around[8, channel] * (nx * nx - ny * ny)
                )
                sky = max(0.02, sky) * (open_sky + (1 - open_sky) * _BOUNCE[channel] * through)
                matt = (r, g, bl)[channel] * (sky + lamp[channel] * direct * reached) * seen
                shine = gloss * (highlight * lamp[channel] + sky * (0.04 + 0.5 * grazing)) * (0.15 + 0.85 * seen)
                colours[y, x, channel] = matt + shine
    return colours, coverage


@compiled
def _skin(
    look: Look,
    lip: float,
    inner: float,
    beard: float,
    blush: float,
    cloth: float,
    scalp: float,
    brow: float,
    large: float,
    middle: float,
    small: float,
    x: float,
    y: float,
) -> tuple[float, float, float, float, float, float]:
    """Red, green, blue, gloss, roughness and translucency of the skin and what is on it."""
    gloss, rough, through = look.gloss, look.roughness, 1.0
    vary = 1 + look.mottle[0] * large + look.mottle[1] * middle + look.mottle[2] * small
    r, g, b = look.skin[0] * vary, look.skin[1] * (vary - 0.03 * middle), look.skin[2] * (vary - 0.03 * large)
    k = blush * 0.45 * (1 + 0.3 * large) * look.blush
    r, g, b = r * (1 + 0.3 * k), g * (1 - 0.55 * k), b * (1 - 0.5 * k)
    k = look.freckles * max(0.0, small + 0.5 * middle - 1.1)
    r, g, b = r * (1 - 0.25 * k), g * (1 - 0.4 * k), b * (1 - 0.45 * k)

    k, vary = lip * look.lip_colour, 1 + 0.10 * middle + 0.10 * small
    r, g, b = _towards(r, g, b, look.lips, vary, k)
    gloss += lip * look.lip_gloss
    rough += (look.lip_roughness - rough) * lip * 0.8

    k = beard * look.beard * (1 - lip) * min(1.0, max(0.0, 0.88 + 0.16 * small + 0.05 * middle))
    k = min(k, 0.95)
    r, g, b = _towards(r, g, b, look.hair, 1 + 0.12 * small, k)
    gloss *= 1 - 0.7 * k
    r, g, b = _towards(r, g, b, look.hair, 1.0, min(1.0, brow * look.brows * max(0.0, 0.9 + 0.3 * small)))
    ragged = scalp - 0.5 + 0.12 * max(-1.5, min(1.5, middle)) + 0.06 * max(-1.5, min(1.5, small))
    k = min(1.0, max(0.0, ragged * 5)) * look.scalp_hair
    r, g, b = _towards(r, g, b, look.hair, 1 + 0.35 * small + 0.2 * middle, k)
    if k > 0.5:
        through = 0.2

    k = min(1.0, max(0.0, (cloth - 0.5) * 12))
    stripe = look.stripes if math.sin(x * look.stripe_x + y * look.stripe_y) > 0 else 0.0
    r, g, b = _towards(r, g, b, look.cloth, 1 + 0.06 * small + stripe, k)
    if k > 0.5:
        through, gloss = 0.0, 0.02
    r, g, b = r + (0.30 - r) * inner, g + (0.09 - g) * inner, b + (0.09 - b) * inner
    return r, g, b, gloss + inner * 0.2, rough, through


@compiled
def _tooth(look: Look, upper: bool, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Teeth with gaps between them, darker towards the gum, translucent at the biting edge."""
    along = math.atan2(x, z - look.arch_front + 0.46) / look.tooth_width
    place = along - math.floor(along)
    gap = min(place, 1 - place)
    above = y - look.upper_edge if upper else look.lower_edge - y  # distance from the biting edge to the gum
    k = (0.55 + 0.45 * min(1.0, gap * 11)) * look.tooth_white
    r, g, b = 0.82 * k, 0.77 * k, 0.66 * k
    gum = min(1.0, max(0.0, (above - (0.105 - 0.04 * gap)) * 45))
    r, g, b = r + (0.55 - r) * gum, g + (0.24 - g) * gum, b + (0.24 - b) * gum
    edge = min(1.0, max(0.0, above * 22 + 0.35 - 0.10 * math.cos(place * 6.283)))
    return r * (0.8 + 0.2 * edge), g * (0.82 + 0.18 * edge), b * (0.86 + 0.14 * edge)


@compiled
def _eye(look: Look, x: float, y: float, z: float) -> tuple[float, float, float]:
    dx, dy = abs(x) - _EYE_X, y - _EYE_Y
    radius = math.sqrt(dx * dx + dy * dy)
    if z > _EYE_FRONT and radius < 0.026:
        return 0.01, 0.01, 0.01
    if z > _EYE_FRONT and radius < 0.062:
        rim = 1.0 - 0.6 * max(0.0, (radius - 0.048) / 0.014)  # the dark ring around the iris
        return look.iris[0] * rim, look.iris[1] * rim, look.iris[2] * rim
    return 0.62, 0.58, 0.55


@compiled
def _hidden(depth: NDArray[np.float32], x: int, y: int, scale: float) -> float:
    """1 where nothing near this pixel stands before it, towards 0 in a hole such as the mouth."""
    height, width = depth.shape
    here, nearer = depth[y, x], 0.0
    for i in range(16):
        radius, angle = (0.07 + 0.20 * (i & 1)) * scale, i * 0.3927
        column = min(width - 1, max(0, int(x + radius * math.cos(angle))))
        row = min(height - 1, max(0, int(y + radius * math.sin(angle))))
        nearer += min(1.0, max(0.0, (depth[row, column] - here - 0.015) * 5))
    return 1 - min(1.0, nearer / 16 * 1.02)


@compiled
def _lit(shadow: NDArray[np.float32], to_shadow: NDArray[np.float64], x: float, y: float, z: float) -> float:
    """Share of the lamp that reaches a point, soft over 3 x 3 pixels of the shadow map."""
    m, size = to_shadow, shadow.shape[0]
    column = int(m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3] + 0.5)
    row = int(m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3] + 0.5)
    here = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z
    total = 0.0
    for i in range(9):
        v, u = min(size - 1, max(0, row + i // 3 - 1)), min(size - 1, max(0, column + i % 3 - 1))
        total += min(1.0, max(0.0, 1 - (shadow[v, u] - here - 0.035) * 25))
    return total / 9


@compiled
def _texel(image: NDArray[np.uint8], s: float, t: float) -> float:
    height, width = image.shape
    x, y = s * width - 0.5, (1 - t) * height - 0.5
    row, column = min(max(int(y), 0), height - 2), min(max(int(x), 0), width - 2)
    v, u = y - row, x - column
    above = image[row, column] * (1 - u) + image[row, column + 1] * u
    below = image[row + 1, column] * (1 - u) + image[row + 1, column + 1] * u
    return float((above * (1 - v) + below * v) / 255.0)


@compiled
def _towards(
    r: float, g: float, b: float, colour: NDArray[np.float64], factor: float, share: float
) -> tuple[float, float, float]:
    return (
        r + (colour[0] * factor - r) * share,
        g + (colour[1] * factor - g) * share,
        b + (colour[2] * factor - b) * share,
    )


@compiled
def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    length = math.sqrt(x * x + y * y + z * z) + 1e-9
    return x / length, y / length, z / length


@compiled
def _mix(values: NDArray[np.float32], a: int, b: int, c: int, u: float, v: float, w: float, column: int) -> float:
    return float(u * values[a, column] + v * values[b, column] + w * values[c, column])


@compiled
def _mix3(
    values: NDArray[np.float32], a: int, b: int, c: int, u: float, v: float, w: float
) -> tuple[float, float, float]:
    return (
        u * values[a, 0] + v * values[b, 0] + w * values[c, 0],
        u * values[a, 1] + v * values[b, 1] + w * values[c, 1],
        u * values[a, 2] + v * values[b, 2] + w * values[c, 2],
    )
