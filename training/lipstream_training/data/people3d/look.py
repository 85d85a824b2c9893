"""Colours and surfaces of a person."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Colour = NDArray[np.float64]
"""Linear RGB, float64 [3]."""


class Nature(NamedTuple):
    """What a person is, beyond shape; all but `age` decide on colours.

    Attributes:
        origin: shares of African, Asian and Caucasian, float64 [3]. male: 0..1. age: 0 young .. 1 old.
        childhood: 0 grown .. 1 a child. melanin: 0 light .. 1 dark.
    """

    origin: NDArray[np.float64]
    male: float
    age: float
    childhood: float
    melanin: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Nature:
        origin = rng.dirichlet([0.7, 0.7, 0.7])
        male = float(np.clip(rng.normal(0.5, 0.6), 0, 1))
        age = float(rng.uniform(0, 1) ** 1.3 * 0.9)
        melanin = float(np.clip(origin @ (0.85, 0.18, 0.03) + rng.normal(0, 0.08), 0, 1))
        childhood = float(rng.uniform(0.2, 0.8)) if rng.random() < 0.15 else 0.0
        if childhood:
            age = 0.0
        return cls(origin, male, age, childhood, melanin)


class Look(NamedTuple):
    """What the shading of a person depends on; shares are 0..1.

    Attributes:
        skin, lips, hair, cloth, iris: colours.
        mottle: strength of coarse, middle and fine variation of the skin, float64 [3].
        blush, freckles, beard, brows, scalp_hair: shares. lip_colour: how far the lips differ from skin.
        gloss, roughness: of skin. lip_gloss, lip_roughness: of lips.
        stripes: contrast of the cloth's pattern, -0.5..0.5. stripe_x, stripe_y: its frequency.
        tooth_width: angle along the arch, radians. tooth_white: brightness.
        upper_edge, lower_edge, arch_front: the biting edges and the front of the arch in the shared head, decimetres.
        pores: strength of the bumps.
    """

    skin: Colour
    lips: Colour
    hair: Colour
    cloth: Colour
    iris: Colour
    mottle: NDArray[np.float64]
    blush: float
    freckles: float
    beard: float
    brows: float
    scalp_hair: float
    lip_colour: float
    gloss: float
    roughness: float
    lip_gloss: float
    lip_roughness: float
    stripes: float
    stripe_x: float
    stripe_y: float
    tooth_width: float
    tooth_white: float
    upper_edge: float
    lower_edge: float
    arch_front: float
    pores: float

    @classmethod
    def random(
        cls, nature: Nature, rng: np.random.Generator, *, upper_edge: float, lower_edge: float, arch_front: float
    ) -> Look:
        light, dark = np.log([0.74, 0.47, 0.35]), np.log([0.085, 0.042, 0.024])
        skin = np.exp(light * (1 - nature.melanin) + dark * nature.melanin) * rng.uniform(0.85, 1.15)
        skin *= 1 + np.array([0.06, -0.10, -0.08]) * rng.uniform(-0.4, 0.4)  # blood
        lips = skin * np.array([0.92, 0.52, 0.55]) ** rng.uniform(0.5, 1.3)
        if nature.male < 0.45 and not nature.childhood and rng.random() < 0.5:
            lipstick = np.array([0.40, 0.05, 0.08]) * rng.uniform(0.5, 1.3) * rng.uniform(0.7, 1.3, 3)
            lips = lips * 0.35 + lipstick * 0.65
        hair = np.array([0.035, 0.022, 0.014]) * np.exp(rng.uniform(-1, 1.6 * (1 - nature.melanin) + 0.2))
        hair *= rng.uniform(0.85, 1.15, 3)
        if rng.random() < nature.age * 0.7:
            hair = np.full(3, 0.3) * rng.uniform(0.4, 1.4)
        kind = rng.random()
        stubble, full = rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.98)
        beard = 0.0 if nature.male <= 0.5 or nature.childhood or kind < 0.3 else stubble if kind < 0.75 else full
        irises = np.array([[0.05, 0.02, 0.01], [0.05, 0.10, 0.16], [0.06, 0.07, 0.03]])
        iris = irises[0 if nature.melanin > 0.35 else rng.integers(3)] * rng.uniform(0.7, 1.5)
        return cls(
            skin=skin,
            lips=lips,
            hair=hair,
            cloth=rng.uniform(0.02, 0.75) * rng.dirichlet([6, 6, 6]) * 3,
            iris=iris,
            mottle=np.array(
                [rng.uniform(0.005, 0.025), rng.uniform(0.005, 0.025), rng.uniform(0.01, 0.03) * (1 + nature.age)]
            ),
            blush=rng.uniform(0.1, 0.9) * (1 - 0.6 * nature.melanin),
            freckles=rng.uniform(0, 1) if rng.random() < 0.3 else 0.0,
            beard=beard,
            brows=rng.uniform(0.65, 1),
            scalp_hair=1.0 if rng.random() < 0.9 else 0.0,
            lip_colour=rng.uniform(0.5, 0.95),
            gloss=rng.uniform(0.05, 0.30),
            roughness=rng.uniform(0.32, 0.5),
            lip_gloss=rng.uniform(0, 0.25),
            lip_roughness=rng.uniform(0.25, 0.5),
            stripes=rng.uniform(-0.5, 0.5) if rng.random() < 0.35 else 0.0,
            stripe_x=rng.uniform(-40, 40),
            stripe_y=rng.uniform(-40, 40),
            tooth_width=0.235 * rng.uniform(0.92, 1.08),
            tooth_white=rng.uniform(0.75, 1.1),
            upper_edge=upper_edge,
            lower_edge=lower_edge,
            arch_front=arch_front,
            pores=rng.uniform(0.02, 0.08),
        )
