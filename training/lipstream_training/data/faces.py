"""Drawn faces: a person in a pose, with a mouth, as a picture.

`FacePainter` paints the static parts once (`head.py`, `scene.py`) and then draws frames by warping them, about one
millisecond per frame of 96 x 96.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .head import brow_line, paint_head
from .identity import Identity
from .lips import MouthPainter, MouthShape, lip_geometry
from .scene import paint_scene
from .sheet import Image, Points

_NECK = (0.0, 330.0)  # the head turns about this point, in face units
CROP_EXTENT = (-330.0, -130.0, 330.0, 690.0)
"""The rectangle of a scene that aligned crops of a moving head need, in face units."""


@dataclass(frozen=True)
class Pose:
    """Pose of the head in the scene.

    Attributes:
        x, y: translation in face units.
        scale: size.
        roll: in-plane turn in radians, clockwise.
        yaw, pitch: small turns in radians, drawn as parallax; yaw > 0 moves the nose right, pitch > 0 down.
        blink: 0 open .. 1 closed.
    """

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    roll: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    blink: float = 0.0

    @property
    def matrix(self) -> Points:
        """float64 [2, 3]: face units of the head -> face units of the scene, without the parallax."""
        c, s = self.scale * np.cos(self.roll), self.scale * np.sin(self.roll)
        turn = np.array([[c, -s], [s, c]])
        pivot = np.array(_NECK)
        return np.concatenate([turn, (pivot - turn @ pivot + (self.x, self.y))[:, None]], axis=1)


def pose_track(frames: int, rng: np.random.Generator, movement: float = 1.0, turn: float = 0.09) -> list[Pose]:
    """Slow random movement about a random resting pose, and blinks.

    Args:
        frames: at 25 per second.
        movement: 0 still, 1 a calm speaker, 2 a lively one.
        turn: standard deviation in radians of the resting head's turn to a side.
    """
    rest = rng.normal(0, 1, 6) * (14, 10, 0.02, 0.07, turn, 0.06)
    swing = np.array([9, 6, 0.015, 0.03, 0.06, 0.035]) * movement
    knots = max(2, frames // int(rng.integers(9, 22)) + 2)
    slow = rng.normal(0, 1, (knots, 6))
    path = np.stack([_spline(slow[:, i], frames) for i in range(6)], 1) * swing + rest
    blink = np.zeros(frames)
    at = rng.uniform(0, 90)
    while at < frames:
        blink = np.maximum(blink, np.clip(1.6 - np.abs(np.arange(frames) - at) / 1.6, 0, 1))
        at += rng.uniform(35, 130)
    limits = (40.0, 30.0, 0.1, 0.25, max(0.2, 1.7 * turn), 0.13)
    path = np.clip(path, -np.array(limits), limits)
    return [
        Pose(x, y, 1 + s, r, yaw, pitch, b)
        for (x, y, s, r, yaw, pitch), b in zip(path.tolist(), blink.tolist(), strict=True)
    ]


class FacePainter:
    """Draws one person in one scene.

    Args:
        person: the identity.
        density: pixels per face unit of the static parts; about twice that of the frames to draw.
        extent: rectangle of the scene in face units; beyond it the border is repeated.
    """

    def __init__(
        self, person: Identity, density: float = 0.45, extent: tuple[float, float, float, float] = CROP_EXTENT
    ) -> None:
        self.person = person
        rng = np.random.default_rng(person.texture_seed)
        self._head = paint_head(person, density, rng)
        self._sheet, self._blink = _to_bytes(self._head.sheet.rgb), _to_bytes(self._head.closed_eyes)
        self._mouths = MouthPainter(person, self._head)
        scene = paint_scene(person, extent, density, rng)
        self._scene_to_pixels = scene.to_pixels
        self._scene = _to_bytes(scene.rgb)

    def render(
        self, pose: Pose, mouths: Sequence[MouthShape], to_image: NDArray[np.float64], size: tuple[int, int]
    ) -> list[NDArray[np.uint8]]:
        """The same pose once for each mouth: the pictures differ only around the mouth.

        Args:
            to_image: [2, 3], face units of the scene -> image pixels (pixel centres are whole numbers).
            size: (height, width); drawn at twice that and averaged.

        Returns:
            uint8 [height, width, 3] RGB for each of `mouths`.
        """
        height, width = size[0] * 2, size[1] * 2
        double = np.asarray(to_image, np.float64) * 2
        double[:, 2] += 0.5
        scene_map = _compose(self._scene_to_pixels, _invert(double))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        scene = cv2.warpAffine(self._scene, scene_map, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        head = self._head
        inverse = _compose(head.sheet.to_pixels, _invert(_compose(double, pose.matrix)))
        depth = cv2.warpAffine(head.depth, inverse, (width, height), flags=flags) * np.float32(head.sheet.density)
        column, row = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
        a = inverse.astype(np.float32)
        map_x = a[0, 0] * column + a[0, 1] * row + a[0, 2] - np.float32(pose.yaw) * depth
        map_y = a[1, 0] * column + a[1, 1] * row + a[1, 2] - np.float32(pose.pitch) * depth
        sheet = self._sheet.copy()
        if pose.blink > 0:
            sheet[head.eyes] = cv2.addWeighted(sheet[head.eyes], 1 - pose.blink, self._blink, pose.blink, 0)
        pictures = []
        for mouth in mouths:
            sheet[self._mouths.window] = _to_bytes(self._mouths.paint(mouth))
            drawn = cv2.remap(sheet, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            through = cv2.merge([255 - drawn[..., 3]] * 3)
            full = cv2.add(drawn[..., :3], cv2.multiply(scene, through, scale=1 / 255))
            pictures.append(np.asarray(cv2.resize(full, size[::-1], interpolation=cv2.INTER_AREA), np.uint8))
        return pictures

    def place(self, points: Points, pose: Pose) -> Points:
        """Points [n, 2] on the resting head -> their positions in `pose`, in face units of the scene."""
        depth, to_pixels = self._head.depth, self._head.sheet.to_pixels
        start = np.asarray(points, np.float64)
        moved = start
        for _ in range(4):  # the parallax of a point is that at its final position
            u, v = np.round(moved @ to_pixels[:, :2].T + to_pixels[:, 2]).astype(int).T
            z = depth[np.clip(v, 0, depth.shape[0] - 1), np.clip(u, 0, depth.shape[1] - 1)]
            moved = start + np.stack([pose.yaw * z, pose.pitch * z], 1)
        matrix = pose.matrix
        return np.asarray(moved @ matrix[:, :2].T + matrix[:, 2])

    def landmarks3(self, pose: Pose) -> Points:
        """The three alignment points, [3, 2]: mean upper edge of each brow (left of the picture first), nose."""
        p = self.person
        wing = p.nose_width + 8
        nose = np.array([(0, p.nose_y - 51), (0, p.nose_y - 11), (-wing, p.nose_y + 4), (wing, p.nose_y + 4)])
        # Landmark networks place a brow somewhat further out and lower than its hairs.
        brows = [brow_line(p, side) + np.array([side * 9, 4]) for side in (-1, 1)]
        return np.stack([self.place(points, pose).mean(0) for points in (brows[0], brows[1], nose)])

    def lip_points(self, pose: Pose, mouth: MouthShape) -> Points:
        """Lips, [6, 2] in face units of the scene.

        Left and right corner, then the middles of the upper lip's outer and inner and the lower's inner and outer edge.
        """
        g = lip_geometry(self.person, mouth)
        middle = [line[len(line) // 2] for line in (g.upper_outer, g.upper_inner, g.lower_inner, g.lower_outer)]
        return self.place(np.array([g.upper_outer[0], g.upper_outer[-1], *middle]), pose)


def _spline(knots: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    at = np.linspace(0, len(knots) - 1, frames)
    i = np.minimum(at.astype(int), len(knots) - 2)
    t = at - i
    t = t * t * (3 - 2 * t)
    return np.asarray(knots[i] * (1 - t) + knots[i + 1] * t)


def _compose(outer: Points, inner: Points) -> Points:
    """The affine map `outer` after `inner`, both [2, 3]."""
    return np.concatenate([outer[:, :2] @ inner[:, :2], (outer[:, :2] @ inner[:, 2] + outer[:, 2])[:, None]], axis=1)


def _to_bytes(image: Image) -> NDArray[np.uint8]:
    return np.asarray(cv2.convertScaleAbs(image), np.uint8)  # rounds and saturates; no colour is negative


def _invert(matrix: Points) -> Points:
    return np.asarray(cv2.invertAffineTransform(matrix), np.float64)
