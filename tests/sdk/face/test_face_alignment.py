"""Alignment: against recorded values, against geometry, and the crop against a plain average."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.bundle.manifest import CANVAS_HEIGHT, CANVAS_WIDTH
from lipstream.errors import ConfigError
from lipstream.face import Aligner, crop, crop_matrix
from lipstream.face.alignment import TEMPLATE
from numpy.typing import NDArray
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "face_affine.safetensors"

#: A face whose points do not fit the template exactly, in pixels.
FACE = np.array([(396.0, 272.0), (636.0, 334.0), (498.0, 431.0)])


def relative_error(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_reproduces_the_recorded_transforms() -> None:
    if not GOLDEN.exists():
        pytest.skip("the recorded transforms are not at ../shared/golden, beside the repository")
    golden = load_file(GOLDEN)
    aligner = Aligner()
    for points, matrix, bias in zip(golden["in/landmarks3"], golden["out/matrix"], golden["out/bias"], strict=True):
        assert relative_error(aligner.solve(points), matrix) < 1e-6
        assert aligner.bias is not None
        assert relative_error(aligner.bias, bias) < 1e-6


def test_points_that_fit_the_template_reach_it_exactly() -> None:
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    source = 0.37 * TEMPLATE @ turn.T + (512.0, 93.0)
    aligner = Aligner()
    matrix = aligner.solve(source)
    assert aligner.bias is not None  # compares shapes before the turn, as the checkpoints' aligner does
    np.testing.assert_allclose(source @ matrix[:, :2].T + matrix[:, 2] - aligner.bias, TEMPLATE, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.02, 20),
    degrees=st.floats(-180, 180),
    x=st.floats(-3000, 3000),
    y=st.floats(-3000, 3000),
)
def test_the_canvas_does_not_depend_on_where_the_face_is(scale: float, degrees: float, x: float, y: float) -> None:
    """Moving, rotating or scaling the picture does not move the aligned face, except for the small nose bias."""
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    still, moved = Aligner(), Aligner()
    matrix = still.solve(FACE)
    other = moved.solve(FACE @ turn.T + (x, y))
    assert still.bias is not None
    assert moved.bias is not None
    expected = FACE @ matrix[:, :2].T + matrix[:, 2] - still.bias
    found = (FACE @ turn.T + (x, y)) @ other[:, :2].T + other[:, 2] - moved.bias
    np.testing.assert_allclose(found, expected, atol=0.02 + 0.01 * (abs(x) + abs(y)) / (100 * scale))
    # A similarity: orthogonal columns of one length, no mirror image.
    assert abs(other[:, 0] @ other[:, 1]) < 1e-6 * abs(np.linalg.det(other[:, :2]))
    assert np.linalg.det(other[:, :2]) > 0


def test_the_nose_bias_is_low_passed() -> None:
    aligner, fresh = Aligner(), Aligner()
    first, second = FACE, FACE + np.array([(0, 0), (0, 0), (9, -4)])
    aligner.solve(first)
    assert aligner.bias is not None
    before = aligner.bias.copy()
    aligner.solve(second)
    fresh.solve(second)
    assert fresh.bias is not None
    np.testing.assert_allclose(aligner.bias, 0.2 * before + 0.8 * fresh.bias, rtol=1e-5)
    aligner.reset()
    np.testing.assert_array_equal(aligner.solve(first), Aligner().solve(first))


@pytest.mark.parametrize("points", [np.zeros((3, 2)), np.full((3, 2), np.nan), np.zeros((4, 2))])
def test_degenerate_points_are_rejected(points: NDArray[np.float64]) -> None:
    with pytest.raises(ConfigError):
        Aligner().solve(points)


def test_the_crop_is_the_whole_canvas_resized() -> None:
    """Compared with resizing an image of the canvas, an independent path with two resamplings."""
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.normal(0, 1, (500, 600, 3)), (0, 0), 9)
    frame = np.clip(128 + 1300 * noise, 0, 255).astype(np.uint8)
    matrix = Aligner().solve(FACE * 0.8 - (100, 60))
    canvas = cv2.warpAffine(frame, matrix, (CANVAS_WIDTH, CANVAS_HEIGHT), borderMode=cv2.BORDER_REPLICATE)
    for size in (96, 256):
        expected = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(crop(frame, matrix, size).astype(int) - expected).mean() < 1.0
    corner = crop_matrix(matrix, 96)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    edge = inverse[:2] @ (-0.5, -0.5, 1)  # outer corner of the canvas, in the frame
    np.testing.assert_allclose(corner[:, :2] @ edge + corner[:, 2], (-0.5, -0.5), atol=1e-9)


@pytest.mark.parametrize("shrink", [2, 5, 13, 30])
@pytest.mark.parametrize("degrees", [0, 20])
def test_a_small_crop_of_a_fine_pattern_is_its_mean(shrink: float, degrees: float) -> None:
    """A checkerboard of single pixels must become grey, not a moire."""
    y, x = np.mgrid[0:2000, 0:2000]
    board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    angle, scale = np.deg2rad(degrees), CANVAS_HEIGHT / (48 * shrink)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, np.array([210, 280]) - linear @ (1000.0, 1000.0)])
    assert np.abs(crop(board, matrix, 48).astype(float) - 127.5).max() < 40
    assert abs(crop(board, matrix, 48).mean() - 127.5) < 1


def test_a_crop_beyond_the_frame_repeats_its_border() -> None:
    frame = np.full((40, 50, 3), (10, 120, 240), np.uint8)
    for offset in (0.0, 1e4):
        matrix = np.array([[4.0, 0, offset], [0, 4.0, -offset]])
        view = crop(frame, matrix, 64)
        assert view.shape == (64, 64, 3)
        np.testing.assert_array_equal(view, np.broadcast_to(frame[0, 0], view.shape))
