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


def linear(samples: Array, x: float, y: float, *, border: float | None) -> Array:
    """`samples` [h, w, ...] at (x, y); beyond the border it is repeated, or is `border`."""
    i, j = int(np.floor(y)), int(np.floor(x))
    total = np.zeros(samples.shape[2:])
    for row, wy in ((i, i + 1 - y), (i + 1, y - i)):
        for column, wx in ((j, j + 1 - x), (j + 1, x - j)):
            inside = 0 <= row < samples.shape[0] and 0 <= column < samples.shape[1]
            clamped = samples[np.clip(row, 0, samples.shape[0] - 1), np.clip(column, 0, samples.shape[1] - 1)]
            total = total + wx * wy * (clamped if inside or border is None else border)
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
        "frame": rng.integers(0, 256, (15, 17, 3)).astype(np.uint8),
        "region": (1, 2, 16, 14),
        "picture": rng.random((11, 13, 3), np.float32),
        "to_picture": turned(1.3),
        "offset": rng.random((3, 4, 3), np.float32) - np.float32(0.5),
        "to_offset": turned(0.2),
        "alpha": np.maximum(rng.random((12, 10), np.float32) - np.float32(0.3), 0),
        "to_alpha": turned(0.8),
    }
    if gate:
        found |= {"gate": np.float32(rng.random((9, 9)) > 0.6), "to_gate": turned(0.7)}
    return found


@pytest.mark.parametrize("gate", [False, True])
def test_compositing_equals_numpy(gate: bool) -> None:
    changed = kept = 0
    for seed in range(12):
        a = given(np.random.default_rng(seed), gate)
        before = a["frame"].astype(np.float64)
        _native.composite(**a)
        for y, x in np.ndindex(*before.shape[:2]):
            spot = np.array([x, y, 1.0])
            opacity = float(linear(a["alpha"], *(a["to_alpha"] @ spot), border=0.0))
            inside = 1 <= x < 16 and 2 <= y < 14
            if gate and not linear(a["gate"], *(a["to_gate"] @ spot), border=0.0) > 0:
                opacity = 0.0
            if not inside or opacity <= 0:
                np.testing.assert_array_equal(a["frame"][y, x], before[y, x])
                kept += 1
                continue
            u, v = a["to_picture"] @ spot
            shift = linear(a["offset"], *np.clip(a["to_offset"] @ spot, 0, (3, 2)), border=None)
            colour = np.clip(255 * (cubic(a["picture"], u, v) + shift), 0, 255)
            expected = before[y, x] + opacity * (colour - before[y, x])
            np.testing.assert_allclose(a["frame"][y, x], expected, atol=0.5 + 1e-3)
            changed += 1
    assert min(changed, kept) > 300


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
        ({"region": (0, 0, 18, 14)}, ValueError, "not a part of the frame"),
        ({"region": (5, 0, 4, 14)}, ValueError, "not a part of the frame"),
        ({"picture": np.zeros((4, 4, 3))}, TypeError, "picture is float64, expected float32"),
        ({"picture": np.zeros((0, 4, 3), np.float32)}, ValueError, "expected pixels"),
        ({"offset": np.zeros((4, 4), np.float32)}, ValueError, "offset is of shape"),
        ({"to_picture": np.full((2, 3), np.nan)}, ValueError, "to_picture holds nan"),
        ({"to_alpha": np.zeros((2, 3), np.float32)}, TypeError, "expected float64"),
        ({"frame": np.zeros((15, 17, 3), np.float32)}, TypeError, "frame is float32, expected uint8"),
        ({"frame": np.zeros((15, 34, 3), np.uint8)[:, ::2]}, ValueError, "strided"),
    ],
)
def test_invalid_arguments_are_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _native.composite(**{**given(np.random.default_rng(0), False), **wrong})
