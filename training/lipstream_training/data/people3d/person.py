"""A random person: the shared head with its identity targets, teeth in place, beard, hair and cloth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .asset import HAIR, LOWER_TEETH, SKIN, TONGUE, UPPER_TEETH, HeadAsset, load_asset
from .geometry import Vertices, blend, from_light, normals, rasterise, smooth_step, turn
from .glasses import Glasses
from .look import Look, Nature
from .noise import COARSE, at_all
from .shade import BEARD, BLUSH, BROW, CLOTH, INNER, OCCLUSION, SCALP

Units = dict[str, float]
"""Strengths of face units by name, mostly 0..1; one without ``Left`` or ``Right`` stands for both."""

_SPREAD = {"asym": 0.18, "mouth": 0.30, "nose": 0.28, "neck": 0.15, "cheek": 0.35, "chin": 0.35}
_NECK = np.array([0.0, 6.10, 0.15], np.float32)
"""The head turns about this point; below it the shoulders stay."""


class Person:
    """The mesh of one person in rest, and the map of what is on the skin.

    Attributes:
        look, nature: see there. glasses: None for most.
        base: float32 [V, 3], the head at rest with closed lips, in decimetres.
        triangles, texture, parts: those of the asset that this person shows; hair from both sides.
        surface: int32 [S, 3], the same with hair from outside only.
        caster: int32 [C, 3], triangles that cast shadows.
        skin_map: float32 [V, 7], see `shade`.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        asset = self._asset = load_asset()
        units = [i for i, name in enumerate(asset.names) if name.startswith("unit/")]
        self._unit = {str(asset.names[i]).removeprefix("unit/"): at for at, i in enumerate(units)}
        self._units = np.ascontiguousarray(asset.targets[units])
        self.nature = Nature.random(rng)
        self.base = _identity(asset, self.nature, rng)
        self._set_teeth(rng)
        upper, lower = (asset.vertices[asset.has(part)] for part in (UPPER_TEETH, LOWER_TEETH))
        self.look = Look.random(
            self.nature,
            rng,
            upper_edge=float(upper[:, 1].min()),
            lower_edge=float(lower[:, 1].max()),
            arch_front=float(upper[:, 2].max()),
        )
        self.glasses = Glasses.random(rng) if rng.random() < 0.22 else None
        long_hair = rng.random() < (0.6 if self.nature.male <= 0.5 else 0.1)
        roughness = at_all(COARSE, asset.vertices.astype(np.float64) * 3.1 + rng.uniform(0, 30))
        self.skin_map = _skin_map(asset, roughness, rng)
        self._thicken(roughness, rng)
        self._choose_triangles(long_hair, rng)
        self.skin_map[:, OCCLUSION] = self._openness()

    def shape(self, units: Units, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Vertices:
        """The mesh with face units and a turned head, float32 [V, 3]; angles as in `turn`."""
        weights = np.zeros(len(self._units), np.float32)
        for name, strength in units.items():
            for key in (name,) if name in self._unit else (name + "Left", name + "Right"):
                weights[self._unit[key]] = strength
        shaped = blend(self.base, self._units, weights)
        share = smooth_step(self.base[:, 1], 5.55, 6.45)[:, None].astype(np.float32)
        rotation = turn(yaw, pitch, roll).astype(np.float32)
        turned = (shaped - _NECK) @ rotation.T + _NECK
        return np.ascontiguousarray(shaped + share * (turned - shaped))

    def _set_teeth(self, rng: np.random.Generator) -> None:
        """Put teeth and tongue behind this person's lips: identity targets move lips and teeth apart."""
        asset, base = self._asset, self.base
        rest = asset.vertices
        middle = np.abs(base[:, 0]) < 0.12
        between = (asset.inner < 0.3) & middle & (asset.lips > 0.5) & (np.abs(rest[:, 1] - 6.622) < 0.012)
        lip_line = float(base[between, 1].mean())
        front = float(base[middle & (asset.lips > 0.8), 2].max())
        upper, lower, tongue = (asset.has(part) for part in (UPPER_TEETH, LOWER_TEETH, TONGUE))
        edge = lip_line - rng.uniform(0.012, 0.05)
        overlap = rng.uniform(-0.02, 0.015)

        height = base[upper, 1] - base[upper, 1].min()
        base[upper, 1] += edge - base[upper, 1].min() - 0.3 * height
        base[upper, 2] -= 0.15 * height
        height = base[lower, 1].max() - base[lower, 1]
        base[lower, 1] += edge + overlap - base[lower, 1].max() + 0.45 * height
        base[lower, 2] -= 0.45 * height
        for teeth, behind in ((upper, 0.085), (lower, 0.135)):
            base[teeth, 0] *= 0.88
            base[teeth, 2] += front - behind - base[teeth & middle, 2].max()
        base[tongue, 1] += base[lower, 1].max() - base[tongue, 1].max()
        base[tongue, 2] += front - 0.17 - base[tongue, 2].max()

    def _thicken(self, roughness: NDArray[np.float32], rng: np.random.Generator) -> None:
        """A full beard and cloth stand off the skin."""
        asset, lips = self._asset, np.clip(self._asset.lips * 2, 0, 1)
        if self.look.beard > 0.55:
            out = self.skin_map[:, BEARD] * (1 - lips) * rng.uniform(0.01, 0.045) * (1 + 0.2 * roughness)
            self.base += normals(self.base, asset.triangles) * out[:, None].astype(np.float32)
        out = smooth_step(self.skin_map[:, CLOTH], 0.48, 0.56) * 0.05
        self.base += normals(self.base, asset.triangles) * out[:, None].astype(np.float32)

    def _choose_triangles(self, long_hair: bool, rng: np.random.Generator) -> None:
        """Leave out what this person lacks and what no camera in front sees."""
        asset = self._asset
        corners = asset.vertices[asset.triangles]
        side, depth, height = np.abs(corners[..., 0]), corners[..., 2], corners[..., 1]
        window = (
            (depth.max(1) > 0.3) & (side.min(1) < rng.uniform(0.66, 0.85)) & (height.min(1) < rng.uniform(7.6, 7.9))
        )
        hair = (asset.part == HAIR) & ~window & (height.min(1) > rng.choice([4.9, 5.6, 6.2, 6.6])) & long_hair
        shown = hair | ((asset.part != HAIR) & ((depth.max(1) > -0.3) | long_hair) & (height.max(1) > 5.1))
        inside = asset.triangles[hair][:, ::-1], asset.texture[hair][:, ::-1], asset.part[hair]  # hair has two sides
        outside = asset.triangles[shown], asset.texture[shown], asset.part[shown]
        self.surface = np.ascontiguousarray(asset.triangles[shown])
        self.triangles, self.texture, self.parts = (np.concatenate(both) for both in zip(outside, inside, strict=True))
        far = np.abs(asset.vertices[asset.caster, 0]).min(1) > 0.8
        casts = (asset.caster_part == SKIN) | ((asset.caster_part == HAIR) & long_hair & far)
        self.caster = np.ascontiguousarray(asset.caster[casts])

    def _openness(self, directions: int = 28, size: int = 96) -> NDArray[np.float64]:
        """Share of the light from all sides that reaches each vertex, [V] in 0..1, by shadow maps from many sides."""
        shape = self.shape({"jawOpen": 0.15})
        outwards = normals(shape, self._asset.triangles)
        i = np.arange(directions) + 0.5
        down, round_ = np.arccos(1 - 2 * i / directions), np.pi * (1 + 5**0.5) * i
        reached, total = np.zeros(len(shape)), np.full(len(shape), 1e-3)
        for direction in np.stack([np.cos(round_) * np.sin(down), np.cos(down), np.sin(round_) * np.sin(down)], axis=1):
            matrix = from_light(direction, size)
            seen = (shape @ matrix[:, :3].T + matrix[:, 3]).astype(np.float32)
            depth, _ = rasterise(seen, self.caster, size, size, False)
            facing = np.clip(outwards @ direction, 0, 1)
            column, row = np.clip(np.round(seen[:, :2]).astype(int), 0, size - 1).T
            reached += facing * np.clip(1 - (depth[row, column] - seen[:, 2] - 0.06) * 15, 0, 1)
            total += facing
        return np.asarray(np.clip(0.05 + 0.95 * reached / total, 0, 1))


def _identity(asset: HeadAsset, nature: Nature, rng: np.random.Generator) -> Vertices:
    """The shared head made this person, its mouth where that of the shared head is."""
    weights = _macro_weights(nature, rng)
    for name in map(str, asset.names):
        folder, _, shape = name.partition("/")
        moves_whole = shape.startswith("asymm") or "trans-in" in shape or "trans-out" in shape
        if folder not in ("unit", "macro") and not moves_whole and rng.random() < 0.5:
            weights[name] = abs(rng.normal(0, _SPREAD.get(folder, 0.22)))
    weights["nose/nose-trans-up"] = weights.get("nose/nose-trans-up", 0.0) + 0.4
    chosen = [i for i, name in enumerate(asset.names) if weights.get(str(name), 0.0) > 1e-3]
    strengths = np.array([weights[str(asset.names[i])] for i in chosen], np.float32)
    shaped = blend(asset.vertices, np.ascontiguousarray(asset.targets[chosen]), strengths)
    _lengthen(shaped, asset)
    lips = asset.lips > 0.8
    moved = shaped[lips].mean(0) - asset.vertices[lips].mean(0)
    moved[0] = 0
    shaped -= moved
    below = np.maximum(0, 5.2 - shaped[:, 1])  # the mesh ends at 4.9: it is pulled out of every picture
    shaped[:, 1] -= 8 * below * asset.has(SKIN)
    return np.asarray(shaped, np.float32)


def _lengthen(shaped: Vertices, asset: HeadAsset) -> None:
    """Move the lower face down and widen it, in place.

    The shared mouth is nearer to the nose, and narrower, than those of real faces in aligned crops.
    """
    _, y, z = asset.vertices.T.astype(np.float64)
    front = smooth_step(z, 0.2, 0.7)
    down = smooth_step(-y, -7.02, -6.78) * smooth_step(y, 5.5, 6.1) * front
    wide = np.exp(-(((y - 6.65) / 0.35) ** 2)) * front
    shaped[:, 1] -= (0.06 * down).astype(np.float32)
    shaped[:, 0] *= (1 + 0.18 * wide).astype(np.float32)


def _macro_weights(nature: Nature, rng: np.random.Generator) -> dict[str, float]:
    """Weights of the targets for origin, sex, age, muscle and weight: each is interpolated between its extremes."""
    muscle, weight = rng.uniform(0, 1), float(np.clip(rng.normal(0.42, 0.2), 0, 1))
    sexes = (("female", 1 - nature.male), ("male", nature.male))
    grown = 1 - nature.childhood
    ages = (("child", nature.childhood), ("young", grown * (1 - nature.age)), ("old", grown * nature.age))

    def three(value: float, noun: str) -> tuple[tuple[str, float], ...]:
        return (
            (f"min{noun}", max(0.0, 1 - 2 * value)),
            (f"average{noun}", 1 - abs(2 * value - 1)),
            (f"max{noun}", max(0.0, 2 * value - 1)),
        )

    weights = {}
    for sex, of_sex in sexes:
        for age, of_age in ages:
            for origin, of_origin in zip(("african", "asian", "caucasian"), nature.origin, strict=True):
                weights[f"macro/{origin}-{sex}-{age}"] = float(of_origin) * of_sex * of_age
            for strong, of_strong in three(muscle, "muscle"):
                for heavy, of_heavy in three(weight, "weight"):
                    weights[f"macro/universal-{sex}-{age}-{strong}-{heavy}"] = of_sex * of_age * of_strong * of_heavy
    return weights


def _skin_map(asset: HeadAsset, roughness: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """float32 [V, 7] in the shared head: where beard, blush, cloth, hair and brows are."""
    x, y, z = asset.vertices.T.astype(np.float64)
    lips, skin = asset.lips > 0.8, asset.has(SKIN)
    mouth = float(y[lips].mean())
    result = np.zeros((len(x), 7), np.float32)
    result[:, INNER] = asset.inner

    beard = (
        smooth_step(mouth + 0.33 - y, 0, 0.10) * smooth_step(y, mouth - 1.05, mouth - 0.6) * smooth_step(z, 0.35, 0.75)
    )
    edge = mouth - 0.12 - 0.1 * rng.uniform(-1, 1)
    beard *= 1 - 0.95 * smooth_step(np.abs(x), 0.40, 0.58) * smooth_step(y, edge, mouth + 0.15)
    if rng.random() < 0.12:  # a moustache alone
        beard *= smooth_step(y, mouth - 0.05, mouth + 0.03) * smooth_step(0.42 - np.abs(x), 0, 0.12)
    result[:, BEARD] = beard * skin * np.clip(1 + 0.12 * roughness, 0, 1.3)

    cheeks = np.exp(-((np.abs(x) - 0.50) ** 2 + (y - mouth - 0.33) ** 2) / 0.05)
    nose = np.exp(-(x**2) / 0.02 - (y - mouth - 0.38) ** 2 / 0.02)
    chin = 0.3 * np.exp(-(x**2) / 0.05 - (y - mouth + 0.42) ** 2 / 0.03)
    result[:, BLUSH] = cheeks + nose + chin

    neckline = 5.80 + rng.uniform(-0.30, 0.22)
    neckline = neckline - rng.uniform(0, 0.5) * np.exp(-((x / rng.uniform(0.2, 0.6)) ** 2)) * (z > 0)
    result[:, CLOTH] = np.where(skin, 0.5 + np.clip((neckline - y) * 2.0, -0.5, 0.5), 0)

    hairline = 7.75 + 0.1 * rng.uniform(-1, 1.5) - 0.5 * smooth_step(np.abs(x), 0.50, 0.75)
    hairline = hairline - 1.0 * smooth_step(-z, -0.75, 0.1)
    hairline = hairline - 0.25 * rng.uniform(0, 1) * smooth_step(np.abs(x), 0.6, 0.72) * (z > 0.4)
    result[:, SCALP] = np.clip(0.5 + (y - hairline) * 3, 0, 1)

    across, up = np.abs(x) - 0.30, y - 7.45 - 0.03 * rng.uniform(-1, 1)
    thickness = rng.uniform(0.032, 0.048)
    result[:, BROW] = np.exp(-((across / 0.17) ** 4) - ((up + 0.75 * across**2) / thickness) ** 2) * (z > 0.9)
    return result
