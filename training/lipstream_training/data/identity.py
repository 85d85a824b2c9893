"""The identity of a drawn person: proportions, colours, hair and light, sampled from a random generator.

Lengths are in face units (`sheet.py`): pixels of the alignment canvas, x = 0 on the midline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = NDArray[np.float32]

_SKINS = np.array([(245, 217, 201), (236, 197, 174), (219, 174, 147), (190, 144, 115), (150, 108, 83), (104, 73, 57)])
_HAIRS = np.array([(22, 18, 17), (38, 27, 22), (62, 42, 30), (96, 66, 42), (150, 112, 66), (190, 160, 110)])
_IRISES = np.array([(58, 38, 24), (80, 55, 32), (46, 30, 22), (95, 105, 70), (92, 118, 140), (110, 115, 120)])


@dataclass(frozen=True)
class Identity:
    """One person in one light. Colours are float32 [3] RGB in 0..255."""

    # proportions
    cheek: float  # half-width of the face at the cheekbones
    jaw: float  # half-width at the corners of the jaw
    chin_y: float
    chin_width: float
    forehead: float
    brow_y: float  # upper edge, mean
    brow_x: float
    brow_arch: float
    brow_thickness: float
    eye_x: float
    eye_y: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    nose_y: float  # of the tip
    nose_width: float
    nose_height: float  # towards the camera
    mouth_y: float
    mouth_width: float  # half-width at rest
    upper_lip: float
    lower_lip: float
    bow: float  # depth of Cupid's bow
    gape: float  # gap between the lips of a mouth wide open
    mouth_curl: float  # corners below (+) or above (-) the lip line
    asymmetry: float
    # colours
    skin: Colour
    lips: Colour
    lip_gloss: float
    hair: Colour
    brow: Colour
    iris: Colour
    teeth: Colour
    blush: float
    # hair and what grows or is worn on a face
    hair_style: int  # 0 bald, 1 cropped, 2 short, 3 long, 4 curly, 5 scarf or hat
    hairline: float
    parting: float
    cover: Colour
    beard: float  # 0 none .. 1 full
    moustache: float
    stubble: float
    glasses: int  # 0 none, 1 thin, 2 thick
    age: float
    freckles: float
    # light
    light: NDArray[np.float32]  # unit vector towards the lamp; x right, y down, z to the camera
    ambient: float
    exposure: float
    tint: Colour  # factor
    shine: float
    texture_seed: int

    @classmethod
    def random(cls, rng: np.random.Generator) -> Identity:
        """A random person."""

        def around(mean: float, spread: float) -> float:
            return float(mean + spread * np.clip(rng.standard_normal(), -2.2, 2.2))

        tone = rng.uniform(0, len(_SKINS) - 1)
        skin = _between(_SKINS, tone) * rng.normal(1, 0.025, 3)
        dark = tone / (len(_SKINS) - 1)
        hair = _between(_HAIRS, rng.uniform(0, 5) * (1 - dark) ** 0.7) * rng.uniform(0.75, 1.15)
        age = float(rng.uniform(0, 1))
        if age > 0.65 and rng.random() < 0.6:
            hair = hair * 0.35 + np.array([150, 148, 146]) * rng.uniform(0.5, 0.95)
        elif dark < 0.4 and rng.random() < 0.1:
            hair = np.array([120, 52, 28]) * rng.uniform(0.7, 1.2)
        man = rng.random() < 0.5
        natural = skin * (0.78, 0.58, 0.57) + np.array([22, 8, 10]) * (1 - dark)
        lips = natural * rng.normal(1, 0.05, 3)
        if not man and rng.random() < 0.45:
            stick = np.array([(170, 30, 45), (190, 70, 85), (120, 25, 45), (200, 95, 90), (150, 60, 60), (90, 30, 40)])
            lips = _mix(lips, stick[rng.integers(len(stick))], rng.uniform(0.4, 0.95))
        bearded = man and rng.random() < 0.45
        azimuth, elevation = rng.normal(0, 0.65), rng.uniform(-0.15, 0.95)
        light = np.array([np.sin(azimuth), -np.tan(elevation) * 0.8, np.cos(azimuth)])
        warm = rng.normal(0, 0.06)
        width = around(1.0, 0.045)
        return cls(
            cheek=around(188, 5) * width,
            jaw=around(150 if man else 140, 8) * width,
            chin_y=around(467 if man else 456, 8),
            chin_width=around(44 if man else 36, 6),
            forehead=around(166, 8) * width,
            brow_y=around(99, 5),
            brow_x=around(98, 4),
            brow_arch=around(10, 5),
            brow_thickness=around(20 if man else 14, 4),
            eye_x=around(84, 3),
            eye_y=around(166, 4),
            eye_width=around(36, 2.5),
            eye_height=around(12.5, 2.2),
            eye_tilt=around(0.02, 0.05),
            nose_y=around(259, 6),
            nose_width=around(49 + 8 * dark, 5),
            nose_height=around(34 - 6 * dark, 6),
            mouth_y=around(346, 5),
            mouth_width=around(71, 5),
            upper_lip=around(20 + 8 * dark, 4.5),
            lower_lip=around(29 + 8 * dark, 5),
            bow=float(rng.uniform(0.05, 0.35)),
            gape=around(65, 5),
            mouth_curl=around(0, 3.5),
            asymmetry=around(0, 2.0),
            skin=np.clip(skin, 20, 252).astype(np.float32),
            lips=np.clip(lips, 15, 230).astype(np.float32),
            lip_gloss=float(rng.uniform(0.05, 0.5) * (0.6 if man else 1.0)),
            hair=np.clip(hair, 8, 235).astype(np.float32),
            brow=np.clip(_mix(hair * 0.75, np.array([45, 32, 26]), 0.4), 8, 170).astype(np.float32),
            iris=(_IRISES[rng.integers(3 if dark > 0.5 else 6)] * rng.uniform(0.8, 1.2)).astype(np.float32),
            teeth=(np.array([236, 228, 212]) * rng.uniform(0.8, 1.02) * (1, 1, rng.uniform(0.88, 1))).astype(
                np.float32
            ),
            blush=float(rng.uniform(0, 0.16)),
            hair_style=int(rng.choice(6, p=[0.1, 0.16, 0.3, 0.26, 0.12, 0.06])),
            hairline=around(-4 if not man else 2 - 30 * age, 16),
            parting=float(rng.uniform(-1, 1)),
            cover=rng.uniform(20, 220, 3).astype(np.float32),
            beard=float(rng.uniform(0.4, 1)) if bearded and rng.random() < 0.5 else 0.0,
            moustache=float(rng.uniform(0.5, 1)) if bearded and rng.random() < 0.6 else 0.0,
            stubble=float(rng.uniform(0.1, 0.5)) if man and rng.random() < 0.6 else 0.0,
            glasses=int(rng.choice(3, p=[0.8, 0.12, 0.08])),
            age=age,
            freckles=float(rng.uniform(0.2, 0.8)) if dark < 0.5 and rng.random() < 0.15 else 0.0,
            light=(light / np.linalg.norm(light)).astype(np.float32),
            ambient=float(rng.uniform(0.4, 0.85)),
            exposure=float(rng.uniform(0.75, 1.08)),
            tint=np.array([1 + warm, 1, 1 - warm], np.float32),
            shine=float(rng.uniform(0.0, 0.35)),
            texture_seed=int(rng.integers(2**31)),
        )

    @property
    def shaded_skin(self) -> Colour:
        """Skin colour under full light."""
        return np.asarray(np.clip(self.skin * self.tint * self.exposure, 0, 255), np.float32)


def _between(palette: NDArray[np.int_], position: float) -> NDArray[np.float64]:
    low = int(np.clip(np.floor(position), 0, len(palette) - 2))
    return _mix(palette[low].astype(np.float64), palette[low + 1].astype(np.float64), position - low)


def _mix(a: NDArray[np.floating], b: NDArray[np.floating] | NDArray[np.int_], share: float) -> NDArray[np.float64]:
    return np.asarray(a * (1 - share) + b * share, np.float64)
