"""Meshes: weighted targets, normals, rotations, and which triangle is seen in each pixel."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

Vertices = NDArray[np.float32]


@compiled
def blend(base: Vertices, targets: NDArray[np.float32], weights: NDArray[np.float32]) -> Vertices:
    """`base` [V, 3] moved by targets [K, V, 3] with weights [K], always summed in the same order."""
    moved = base.copy()
    for k in range(len(weights)):
        weight = weights[k]
        if weight != 0:
            for i in range(len(moved)):
                for axis in range(3):
                    moved[i, axis] += weight * targets[k, i, axis]
    return moved


@compiled
def normals(vertices: Vertices, triangles: NDArray[np.int32]) -> Vertices:
    """Unit normals float32 [V, 3], averaged over the triangles of each vertex by area."""
    result = np.zeros_like(vertices)
    for i in range(len(triangles)):
        a, b, c = triangles[i, 0], triangles[i, 1], triangles[i, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in (a, b, c):
            result[k, 0] += x
            result[k, 1] += y
            result[k, 2] += z
    for i in range(len(result)):
        length = math.sqrt(result[i, 0] ** 2 + result[i, 1] ** 2 + result[i, 2] ** 2) + 1e-12
        for axis in range(3):
            result[i, axis] /= length
    return result


@compiled
def rasterise(
    screen: Vertices, triangles: NDArray[np.int32], height: int, width: int, cull: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Depth and number of the nearest triangle in each pixel.

    Args:
        screen: [V, 3], x and y in pixels (centres are whole numbers), depth (larger is nearer).
        cull: leave out triangles seen from behind.

    Returns:
        float32 [height, width], -1e9 where nothing is; int32 [height, width], -1 there.
    """
    depth = np.full((height, width), -1e9, np.float32)
    ids = np.full((height, width), -1, np.int32)
    for i in range(len(triangles)):
        a, b, c = triangles[i, 0], triangles[i, 1], triangles[i, 2]
        ax, ay, bx, by, cx, cy = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or (cull and area > 0):
            continue
        left, right = max(0, math.ceil(min(ax, bx, cx))), min(width - 1, math.floor(max(ax, bx, cx)))
        top, bottom = max(0, math.ceil(min(ay, by, cy))), min(height - 1, math.floor(max(ay, by, cy)))
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                w = 1 - u - v
                if u >= 0 and v >= 0 and w >= 0:
                    z = u * screen[a, 2] + v * screen[b, 2] + w * screen[c, 2]
                    if z > depth[y, x]:
                        depth[y, x] = z
                        ids[y, x] = i
    return depth, ids


def turn(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """Rotation [3, 3] in radians: yaw > 0 moves the nose right in the picture, pitch > 0 down, roll > 0 clockwise."""
    c, s = math.cos(yaw), math.sin(yaw)
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = math.cos(pitch), math.sin(pitch)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = math.cos(roll), math.sin(roll)
    about_z = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def from_light(direction: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Affine map [3, 4] from the scene to a square picture of `size` pixels seen from a light; third row: depth."""
    forward = direction / np.linalg.norm(direction)
    up = np.array([0.0, 1, 0]) if abs(forward[1]) < 0.95 else np.array([1.0, 0, 0])
    right = np.cross(up, forward)
    right /= np.linalg.norm(right)
    above = np.cross(forward, right)
    scale, middle = size / 4.6, np.array([0, 6.55, 0.6])  # a head and shoulders, in decimetres
    return np.array(
        [
            [*(right * scale), size / 2 - right @ middle * scale],
            [*(-above * scale), size / 2 + above @ middle * scale],
            [*forward, 0],
        ]
    )


def smooth_step(x: NDArray[np.floating], low: float, high: float) -> NDArray[np.float64]:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float64)
