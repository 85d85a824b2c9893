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


def keys(t: float, a: float = -0.75) -> float:
    """Keys' cubic (1981), for the distance t."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def cubic(samples: Array, x: float, y: float) -> Array:
    i, j = int(np.floor(y)), int(np.floor(x))
    total = np.zeros(samples.shape[2:])
    for row in range(i - 1, i + 3):
        for column in range(j - 1, j + 3):
            clamped = samples[np.clip(row, 0, samples.shape[0] - 1), np.clip(column, 0, samples.shape[1] - 1)]
            total += keys(x - column) * keys(y - row) * clamped
    return total


def given(rng: np.random.Generator, gate: bool) -> dict[str, Any]:
    """Arguments for a small rotated picture that is partly outside its frame."""

    def turned(zoom: float) -> Array:
        angle = rng.uniform(0, 6.3)
        c, s = zoom * np.cos(angle), zoom * np.sin(angle)
        middle = np.array([6.0, 5.0]) - np.array([[c, -s], [s, c]]) @ rng.uniform(3, 12, 2)
        return np.column_stack([[[c, -s], [s, c]], middle])

    found: dict[str, Any] = {
        "block": np.full((12, 15, 4), np.nan, np.float32),
        "corner": (1, 2),
        "strength": float(rng.choice([1.0, 0.4])),
        "picture": rng.random((11, 13, 3), np.float32),
        "to_picture": turned(1.3),
        "alpha": np.maximum(rng.random((12, 10), np.float32) - np.float32(0.3), 0),
        "to_alpha": turned(0.8),
    }
    if gate:
        found |= {"gate": np.float32(rng.random((9, 9)) > 0.6), "to_gate": turned(0.7)}
    return found


@pytest.mark.parametrize("gate", [False, True])
def test_rendering_equals_numpy(gate: bool) -> None:
    opaque = clear = 0
    for seed in range(12):
        a = given(np.random.default_rng(seed), gate)
        _native.render(**a)
        for row, column in np.ndindex(*a["block"].shape[:2]):
            spot = np.array([column + 1, row + 2, 1.0])
            opacity = a["strength"] * float(linear(a["alpha"], *(a["to_alpha"] @ spot)))
            if gate and not linear(a["gate"], *(a["to_gate"] @ spot)) > 0:
                opacity = 0.0
            if opacity <= 0:
                assert not a["block"][row, column].any()
                clear += 1
                continue
            u, v = a["to_picture"] @ spot
            colour = np.clip(cubic(a["picture"], u, v), 0, 1)
            np.testing.assert_allclose(a["block"][row, column], [*opacity * colour, opacity], atol=1e-5)
            opaque += 1
    assert min(opaque, clear) > 300


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
        ({"picture": np.zeros((4, 4, 3))}, TypeError, "picture is float64, expected float32"),
        ({"picture": np.zeros((0, 4, 3), np.float32)}, ValueError, "expected pixels"),
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
        _native.render(**{**given(np.random.default_rng(0), False), **wrong})
