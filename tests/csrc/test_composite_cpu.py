"""The pixel loop of compositing: against NumPy, under sanitizers, and with invalid arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lipstream import _native
from lipstream.media.lanczos import lanczos
from numpy.typing import NDArray

HOST, ROOT = Path(__file__).parent / "host", Path(__file__).parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or ""
Array = NDArray[np.float64]


def linear(samples: Array, x: float, y: float) -> Array:
    """`samples` [h, w] at (x, y), 0 beyond the border."""
    i, j = int(np.floor(y)), int(np.floor(x))
    total = np.zeros(samples.shape[2:])
    for row, wy in ((i, i + 1 - y), (i + 1, y - i)):
        for column, wx in ((j, j + 1 - x), (j + 1, x - j)):
            if 0 <= row < samples.shape[0] and 0 <= column < samples.shape[1]:
                total = total + wx * wy * samples[row, column]
    return total


def filtered(samples: Array, x: float, y: float, across: Array, down: Array) -> Array:
    """`samples` [h, w, ...] at (x, y) by the filters [256, taps], whose samples are moved inside."""
    (column, wx), (row, wy) = (_taps(*of) for of in ((x, samples.shape[1], across), (y, samples.shape[0], down)))
    part = samples[row : row + len(wy), column : column + len(wx)]
    return np.asarray(np.tensordot(wx, np.tensordot(wy, part, 1), 1))


def _taps(position: float, size: int, weights: Array) -> tuple[int, Array]:
    place = round((min(max(position, -1), size) + 1) * 256)
    first = place // 256 - weights.shape[1] // 2
    return min(max(first, 0), size - weights.shape[1]), weights[place % 256]


def given(rng: np.random.Generator) -> dict[str, Any]:
    """Arguments for a small rotated picture that is partly outside its frame."""

    def turned(zoom: float) -> Array:
        angle = rng.uniform(0, 6.3)
        c, s = zoom * np.cos(angle), zoom * np.sin(angle)
        middle = np.array([6.0, 5.0]) - np.array([[c, -s], [s, c]]) @ rng.uniform(3, 12, 2)
        return np.column_stack([[[c, -s], [s, c]], middle])

    return {
        "block": np.full((12, 15, 4), np.nan, np.float32),
        "corner": (1, 2),
        "strength": float(rng.choice([1.0, 0.4])),
        "picture": np.append(rng.random((11, 13, 3), np.float32), np.zeros((11, 13, 1), np.float32), axis=2),
        "to_picture": turned(1.3),
        "filter_x": lanczos(1.3, 2),
        "filter_y": rng.normal(size=(256, 4)).astype(np.float32),
        "alpha": np.maximum(rng.random((12, 10), np.float32) - np.float32(0.3), 0),
        "to_alpha": turned(0.8),
    }


def test_rendering_equals_numpy() -> None:
    opaque = clear = 0
    for seed in range(12):
        a = given(np.random.default_rng(seed))
        _native.render(**a)
        for row, column in np.ndindex(*a["block"].shape[:2]):
            spot = np.array([column + 1, row + 2, 1.0])
            opacity = a["strength"] * float(linear(a["alpha"], *(a["to_alpha"] @ spot)))
            if opacity <= 0:
                assert not a["block"][row, column].any()
                clear += 1
                continue
            u, v = a["to_picture"] @ spot
            colour = np.clip(filtered(a["picture"], u, v, a["filter_x"], a["filter_y"])[:3], 0, 1)
            np.testing.assert_allclose(a["block"][row, column], [*opacity * colour, opacity], atol=1e-5)
            opaque += 1
    assert min(opaque, clear) > 300


def test_resampling_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    plane, view = rng.random((21, 30), np.float32), np.empty((9, 14), np.float32)
    to_plane = np.array([[1.7, 0.4, -3.0], [-0.5, 1.9, 2.0]])  # some places lie outside the plane
    x, y = lanczos(1.5, 4), lanczos(1.9, 2)
    _native.resample(view, plane, to_plane, x, y)
    for row, column in np.ndindex(*view.shape):
        expected = filtered(plane.astype(np.float64), *(to_plane @ (column, row, 1.0)), x, y)
        np.testing.assert_allclose(view[row, column], expected, atol=1e-5)


def test_under_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "composite_test"
    options = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [COMPILER, *options, f"-I{ROOT / 'csrc' / 'include'}", str(HOST / "composite_test.cpp"), "-o", program]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"picture": np.zeros((4, 4, 4))}, TypeError, "picture is float64, expected float32"),
        ({"picture": np.zeros((0, 4, 4), np.float32)}, ValueError, "expected pixels"),
        ({"picture": np.zeros((8, 7, 4), np.float32)}, ValueError, "filter_x has 8 taps for 7 samples"),
        ({"filter_y": np.zeros((256, 3), np.float32)}, ValueError, "3 taps, expected a multiple of 2"),
        ({"filter_y": np.zeros((64, 4), np.float32)}, ValueError, "filter_y is of shape"),
        ({"picture": np.zeros((4, 4), np.float32)}, ValueError, "picture is of shape"),
        ({"to_picture": np.full((2, 3), np.nan)}, ValueError, "to_picture holds nan"),
        ({"to_alpha": np.zeros((2, 3), np.float32)}, TypeError, "expected float64"),
        ({"block": np.zeros((15, 17, 4), np.uint8)}, TypeError, "block is uint8, expected float32"),
        ({"block": np.zeros((15, 17, 3), np.float32)}, ValueError, "block is of shape"),
        ({"block": np.zeros((15, 34, 4), np.float32)[:, ::2]}, ValueError, "strided"),
    ],
)
def test_invalid_arguments_are_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _native.render(**{**given(np.random.default_rng(0)), **wrong})
