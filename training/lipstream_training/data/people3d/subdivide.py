"""One step of Catmull-Clark subdivision as a sparse matrix, so that a mesh and all its targets take the same step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray


@dataclass(frozen=True)
class Subdivision:
    """One step for n vertices, f faces and e edges.

    Attributes:
        matrix: sparse [n + f + e, n]: positions before -> moved vertices, face points, edge points.
        triangles: int32 [T, 3] of the finer mesh.
        texture: float32 [T, 3, 2], texture coordinates of their corners.
        face: int64 [T], the face that each triangle comes from.
    """

    matrix: sparse.csr_array
    triangles: NDArray[np.int32]
    texture: NDArray[np.float32]
    face: NDArray[np.int64]


def subdivide(faces: NDArray[np.int64], texture: NDArray[np.float64], vertices: int) -> Subdivision:
    """Subdivide quads and triangles.

    Args:
        faces: [f, 4] vertex numbers, in order; a triangle repeats its third.
        texture: [f, 4, 2], texture coordinates of the corners.
        vertices: n, their number; each belongs to a face.
    """
    triangle = faces[:, 3] == faces[:, 2]
    corners = np.where(triangle, 3, 4)
    real = np.arange(4) < corners[:, None]  # [f, 4], False for the repeated corner
    following = np.where(triangle[:, None], faces[:, [1, 2, 0, 0]], np.roll(faces, -1, 1))
    face_of, corner = np.nonzero(real)
    pairs = np.sort(np.stack([faces[real], following[real]], 1), 1)
    edges, edge_of = np.unique(pairs, axis=0, return_inverse=True)
    edge_of = edge_of.reshape(-1)
    f, e = len(faces), len(edges)

    def incidence(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> sparse.csr_array:
        return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)

    def means(matrix: sparse.csr_array) -> sparse.csr_array:
        """Rows divided by their sums; empty rows stay empty."""
        return sparse.diags_array(1 / np.maximum(matrix.sum(1), 1)) @ matrix

    def scaled(weights: NDArray[np.floating], matrix: sparse.csr_array) -> sparse.csr_array:
        return sparse.diags_array(weights.astype(np.float64)) @ matrix

    of_faces = incidence(face_of, faces[real], (f, vertices))
    of_edges = incidence(np.repeat(np.arange(e), 2), edges.ravel(), (e, vertices))
    edge_faces = incidence(edge_of, face_of, (e, f))
    face_points, middles = means(of_faces), means(of_edges)
    border = edge_faces.sum(1) != 2
    edge_points = scaled(np.where(border, 1, 0.5), middles) + scaled(
        np.where(border, 0, 0.5), means(edge_faces) @ face_points
    )
    at_border = of_edges[border].sum(0) > 0
    valence = of_faces.sum(0)
    kept = sparse.identity(vertices, format="csr")
    inner = means(of_faces.T.tocsr()) @ face_points + 2 * (means(of_edges.T.tocsr()) @ middles)
    inner = scaled(1 / valence, inner + scaled(valence - 3, kept))
    outer = 0.5 * kept + 0.5 * (means(of_edges[border].T.tocsr()) @ middles[border])
    moved = scaled(~at_border, inner) + scaled(at_border, outer)
    matrix = sparse.vstack([moved, face_points, edge_points]).tocsr()

    # Each corner becomes a quad: corner, middle of its edge, middle of the face, middle of the edge before it.
    edge_at = np.zeros((f, 4), np.int64)
    edge_at[real] = edge_of
    before = np.where(corner == 0, corners[face_of] - 1, corner - 1)
    after = (corner + 1) % corners[face_of]
    quads = np.stack(
        [
            faces[real],
            vertices + f + edge_of,
            vertices + face_of,
            vertices + f + edge_at[face_of, before],
        ],
        1,
    )
    middle = (texture * real[..., None]).sum(1) / corners[:, None]
    here = texture[face_of, corner]
    coordinates = np.stack(
        [here, (here + texture[face_of, after]) / 2, middle[face_of], (here + texture[face_of, before]) / 2], 1
    )
    halves = ([0, 1, 2], [0, 2, 3])
    return Subdivision(
        matrix,
        np.concatenate([quads[:, half] for half in halves]).astype(np.int32),
        np.concatenate([coordinates[:, half] for half in halves]).astype(np.float32),
        np.tile(face_of, 2),
    )
