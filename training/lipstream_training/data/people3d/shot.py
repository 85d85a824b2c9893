"""One person in one light before one camera: poses to pictures."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..faces import Pose
from .asset import EYE, load_asset
from .geometry import Vertices, from_light, normals, rasterise
from .light import Light
from .noise import COARSE, FINE
from .person import Person, Units
from .shade import shade

_SHADOW = 160  # pixels a side of the shadow map
_FACE_UNIT = 1 / 110  # decimetres per face unit of `Pose`
_BROW_HEIGHT = 7.35  # decimetres; glasses stand before what is nearest at this height


class Layer(NamedTuple):
    """A rendered person without background.

    Attributes:
        colours: float32 [H, W, 3], linear RGB. coverage: float32 [H, W], 1 where the person is.
        fineness: pixels a side that are averaged to one.
    """

    colours: NDArray[np.float32]
    coverage: NDArray[np.float32]
    fineness: int


class Shot:
    """Person, light and camera of a whole clip.

    Attributes:
        exposure: factor from linear RGB to the picture's.
    """

    def __init__(self, person: Person, light: Light, rng: np.random.Generator) -> None:
        self.person, self.light = person, light
        self._eye = np.array([0, 6.9 + rng.uniform(-0.5, 0.5), rng.uniform(7, 22)])
        self._focal = 100.0 * (self._eye[2] - 1.2)  # 100 picture units a decimetre at the face
        brightness = float((person.look.skin * (light.around[0] + 0.5 * light.lamp)).mean())
        self.exposure = float(np.clip(0.20 / brightness, 0.5, 4.2) ** 0.55) * 1.12 * math.exp(rng.normal(0, 0.12))
        asset = load_asset()
        near = (np.abs(asset.vertices[:, 1] - _BROW_HEIGHT) < 0.15) & (np.abs(asset.vertices[:, 0]) < 0.4)
        self._glasses_front = float(person.base[near, 2].max()) + 0.09
        self._rest = asset.vertices
        eyes = asset.has(EYE)
        self._eyes_moved = np.array([0.0, float((person.base[eyes, 1] - asset.vertices[eyes, 1]).mean()), 0.0])

    def place(self, units: Units, pose: Pose) -> Vertices:
        """The mesh in the scene, float32 [V, 3]. `Pose.scale` is a step towards the camera."""
        blink = {"eyeBlink": pose.blink} if pose.blink > 0 else {}
        shape = self.person.shape(units | blink, pose.yaw, pose.pitch, pose.roll)
        step = (self._eye[2] - 1.2) * (1 - 1 / pose.scale)
        return shape + np.array([pose.x * _FACE_UNIT, -pose.y * _FACE_UNIT, step], np.float32)

    def project(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points [n, 3] of the scene -> float64 [n, 2], picture units, y down."""
        away = self._eye[2] - points[:, 2]
        x, y = points[:, 0] - self._eye[0], self._eye[1] - points[:, 1]
        return np.asarray(np.stack([x, y], 1) * (self._focal / away)[:, None], np.float64)

    def render(
        self, vertices: Vertices, to_image: NDArray[np.float64], size: tuple[int, int], fineness: int = 2
    ) -> Layer:
        """The person as a layer.

        Args:
            vertices: from `place`. to_image: [2, 3], picture units -> pixels. size: (height, width).
            fineness: rendered with this many times more pixels a side.
        """
        person, light = self.person, self.light
        height, width = size[0] * fineness, size[1] * fineness
        fine = finer(to_image, fineness)

        def to_pixels(points: NDArray[np.floating]) -> NDArray[np.float64]:
            return np.asarray(self.project(points) @ fine[:, :2].T + fine[:, 2])

        screen = np.empty_like(vertices)
        screen[:, :2], screen[:, 2] = to_pixels(vertices), vertices[:, 2]
        to_shadow = from_light(light.direction, _SHADOW)
        from_lamp = (vertices @ to_shadow[:, :3].T + to_shadow[:, 3]).astype(np.float32)
        shadow, _ = rasterise(from_lamp, person.caster, _SHADOW, _SHADOW, False)
        depth, ids = rasterise(screen, person.triangles, height, width, True)
        scale = math.hypot(fine[0, 0], fine[1, 0]) * 100.0
        colours, coverage = shade(
            ids,
            depth,
            screen,
            vertices,
            normals(vertices, person.surface),
            self._rest,
            person.triangles,
            person.texture,
            person.parts,
            person.skin_map,
            load_asset().lip_texture,
            COARSE,
            FINE,
            person.look,
            light.around,
            light.direction,
            light.lamp,
            shadow,
            to_shadow,
            self._eye,
            scale,
        )
        if person.glasses:
            moved = self._head_motion(vertices)

            def head_to_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
                return to_pixels((points + self._eyes_moved) @ moved[:, :3].T + moved[:, 3])

            person.glasses.draw(colours, coverage, self._glasses_front, head_to_pixels, scale)
        return Layer(colours, coverage, fineness)

    def _head_motion(self, vertices: Vertices) -> NDArray[np.float64]:
        """Affine map [3, 4] of the skull from rest to `vertices`, by least squares over its upper half."""
        base = self.person.base
        skull = base[:, 1] > 7.6
        rest = np.column_stack([base[skull], np.ones(int(skull.sum()))])
        return np.asarray(np.linalg.lstsq(rest, vertices[skull].astype(np.float64), rcond=None)[0].T)

    def develop(self, layer: Layer, background: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The picture, uint8 [height, width, 3] RGB, before a background [H, W, 3] of linear RGB."""
        height, width = layer.coverage.shape
        linear = layer.colours * self.exposure + background * (1 - layer.coverage[..., None])
        small = (width // layer.fineness, height // layer.fineness)
        return _to_srgb(np.asarray(cv2.resize(np.minimum(linear, 1.6), small, interpolation=cv2.INTER_AREA)))

    def colour(self, linear: NDArray[np.float64]) -> NDArray[np.uint8]:
        """uint8 [3] RGB that a matt surface of this colour has on average in this light."""
        return _to_srgb(linear * (self.light.around[0] + 0.5 * self.light.lamp) * self.exposure)


def _to_srgb(linear: NDArray[np.floating]) -> NDArray[np.uint8]:
    x = np.clip(linear.astype(np.float32), 0, None)
    x = np.where(x > 0.7, 0.7 + 0.3 * np.tanh((x - 0.7) / 0.3 * 0.8), x)  # a film's shoulder
    srgb = np.where(x < 0.0031, 12.92 * x, 1.055 * np.maximum(x, 1e-6) ** (1 / 2.4) - 0.055)
    return np.round(np.clip(srgb, 0, 1) * 255).astype(np.uint8)


def finer(to_image: NDArray[np.float64], fineness: int) -> NDArray[np.float64]:
    """The map to pixels [2, 3] of a picture with `fineness` times more pixels a side."""
    fine = to_image * fineness
    fine[:, 2] += (fineness - 1) / 2
    return fine
