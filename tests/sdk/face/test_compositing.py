"""Compositing: kept pixels bit for bit, no seam, no colour jump, for any place of the face."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.errors import ConfigError, LipStreamInternalError
from lipstream.face import crop, crop_matrix
from lipstream.face.alignment import WHOLE_CANVAS, Box
from lipstream.face.compositing import Compositor
from lipstream.media import Picture
from numpy.typing import NDArray
from portraits import placed, similarity

Array = NDArray[np.float64]

PORTRAIT: Array = np.array([[3.99, 0.27, -394.65], [-0.27, 3.99, -208.92]])
"""The portrait's pixels -> canvas; its face is 96 pixels wide."""
LOWER_FACE: Box = (58.0, 248.0, 362.0, 552.0)


def mouth_mask(size: int, sigma: float = 0.0) -> NDArray[np.float32]:
    """An ellipse over the lower half, 0 inside; soft with standard deviation `sigma`, in pixels."""
    mask = np.ones((size, size), np.float32)
    centre, axes = (size // 2, round(0.68 * size)), (round(0.36 * size), round(0.24 * size))
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 0.0, -1)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma), np.float32) if sigma else mask


def smooth_picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).random((height // 32 + 2, width // 32 + 2, 3)).astype(np.float32)
    return np.asarray(40 + 170 * cv2.GaussianBlur(cv2.resize(noise, (width, height)), (0, 0), 8), np.uint8)


def face_at(scale: float, degrees: float, x: float, y: float) -> Array:
    """Source -> canvas, for a face whose canvas has its middle at (x, y) and is `scale` times finer than the source."""
    angle = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, np.array([210.0, 280.0]) - linear @ (x, y)])


def mask_in_source(mask: NDArray[np.float32], matrix: Array, width: int, height: int, box: Box = WHOLE_CANVAS) -> Array:
    """The mask's value at every source pixel's centre, 1 outside the crop: sampled in plain float64."""
    size = len(mask)
    to_crop = crop_matrix(matrix, size, box)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    u, v = np.tensordot(to_crop[:, :2], np.stack([x, y]), 1) + to_crop[:, 2, None, None]
    padded = np.pad(mask.astype(np.float64), 1, constant_values=1)
    u, v = np.clip(u + 1, 0, size), np.clip(v + 1, 0, size)
    i, j = np.floor(v).astype(int), np.floor(u).astype(int)
    a, b = v - i, u - j
    top = padded[i, j] * (1 - b) + padded[i, j + 1] * b
    return np.asarray(top * (1 - a) + (padded[i + 1, j] * (1 - b) + padded[i + 1, j + 1] * b) * a)


def composited(
    compositor: Compositor,
    frame: NDArray[np.uint8],
    generated: NDArray[np.float32],
    view: NDArray[np.uint8],
    matrix: Array,
) -> NDArray[np.uint8]:
    return compositor.composite(Picture.of(frame), generated, view, matrix).rgb


PLACES = {
    "scale": st.floats(0.4, 12),
    "degrees": st.floats(-180, 180),
    "x": st.floats(-100, 300),
    "y": st.floats(-100, 250),
}


@settings(max_examples=60, deadline=None)
@given(size=st.sampled_from([32, 96, 250]), sigma=st.sampled_from([0.0, 2.0]), **PLACES)
def test_kept_pixels_are_the_source_bit_for_bit(
    size: int, sigma: float, scale: float, degrees: float, x: float, y: float
) -> None:
    rng = np.random.default_rng(1)
    frame = rng.integers(0, 256, (160, 200, 3)).astype(np.uint8)
    before = frame.copy()
    matrix, mask = face_at(scale, degrees, x, y), mouth_mask(size, sigma)
    generated = rng.random((size, size, 3)).astype(np.float32)
    result = composited(Compositor(mask), frame, generated, crop(frame, matrix, size), matrix)
    assert result.shape == frame.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(frame, before)
    assert not np.shares_memory(result, frame)
    kept = mask_in_source(mask, matrix, 200, 160) >= 1 - 1e-9
    np.testing.assert_array_equal(result[kept], frame[kept])


@settings(max_examples=40, deadline=None)
@given(**PLACES)
def test_the_masked_region_shows_the_generated_picture(scale: float, degrees: float, x: float, y: float) -> None:
    """A grey source and a generated red mouth: the mask's core is red, wherever the face lies."""
    size, frame = 64, np.full((160, 200, 3), 100, np.uint8)
    matrix, mask = face_at(scale, degrees, x, y), mouth_mask(size)
    generated = np.full((size, size, 3), 100 / 255, np.float32)
    generated[mask == 0] = (0.9, 0.1, 0.1)
    result = composited(Compositor(mask), frame, generated, crop(frame, matrix, size), matrix)
    core = np.asarray(cv2.dilate(mask, np.ones((15, 15)), borderValue=1), np.float32)
    wide = 1 - mask_in_source(core, matrix, 200, 160) >= 1
    if 420 / size / scale < 2:  # at least half a source pixel per crop pixel: the core is wider than one of them
        np.testing.assert_allclose(result[wide], np.broadcast_to([229.5, 25.5, 25.5], (wide.sum(), 3)), atol=2)


def test_a_picture_of_bytes_is_that_of_their_fractions() -> None:
    frame, matrix = smooth_picture(160, 200), face_at(1.5, 10, 90, 80)
    generated, compositor = smooth_picture(64, 64), Compositor(mouth_mask(64))
    view = crop(frame, matrix, 64)
    expected = compositor.composite(Picture.of(frame), generated / np.float32(255), view, matrix).rgb
    found = compositor.composite(Picture.of(frame), generated, view, matrix).rgb
    assert not np.array_equal(found, frame)
    np.testing.assert_array_equal(found, expected)


def test_a_generated_source_changes_almost_nothing() -> None:
    """With the resolution of crop and source equal, compositing is the identity except for resampling."""
    frame = smooth_picture(480, 640)
    for size, scale, degrees in ((96, 1.5, 0), (256, 1.5, 20), (256, 2.6, 0), (512, 3.0, -30)):
        matrix = face_at(scale, degrees, 330, 250)
        view = crop(frame, matrix, size)
        result = composited(Compositor(mouth_mask(size)), frame, np.asarray(view / 255, np.float32), view, matrix)
        difference = np.abs(result.astype(int) - frame)
        assert difference.max() <= 4
        assert difference.mean() < 0.1


@pytest.mark.parametrize(("scale", "degrees"), [(0.5, 0), (0.7, 12), (1.0, -5)])
def test_a_true_crop_pasted_back_keeps_the_picture(scale: float, degrees: float) -> None:
    """Faces of up to 100 pixels through a crop of 64 pixels: what is lost there, no network can bring back."""
    frame = placed(similarity(scale, degrees, 150, 140), 300, 300)
    to_portrait = cv2.invertAffineTransform(similarity(scale, degrees, 150, 140))
    matrix = PORTRAIT @ np.vstack([to_portrait, (0, 0, 1)])
    view = crop(frame, matrix, 64, LOWER_FACE)
    compositor = Compositor(mouth_mask(64), box=LOWER_FACE)
    result = compositor.composite(Picture.of(frame), view, view, matrix).rgb
    inside = mask_in_source(mouth_mask(64), matrix, 300, 300, LOWER_FACE) < 0.05
    lost = np.square(result[inside].astype(float) - frame[inside]).mean()
    assert 10 * np.log10(255**2 / lost) >= 40
    assert _gradient_energy(result, inside) >= 0.9 * _gradient_energy(frame, inside)


def _gradient_energy(picture: NDArray[np.uint8], inside: NDArray[np.bool_]) -> float:
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(float)
    rows, columns = (np.square(np.diff(luma, axis=axis)) for axis in (0, 1))
    return float(rows[inside[1:]].mean() + columns[inside[:, 1:]].mean())


@pytest.mark.parametrize("cast", [(0.12, -0.08, 0.05), (-0.25, -0.25, -0.25)])
def test_a_colour_cast_of_the_generated_picture_disappears(cast: tuple[float, float, float]) -> None:
    frame = smooth_picture(480, 640, seed=3) // 2 + 64
    matrix = face_at(1.6, 10, 320, 240)
    view = crop(frame, matrix, 128)
    generated = np.asarray(np.clip(view / 255 + np.array(cast), 0, 1), np.float32)
    result = composited(Compositor(mouth_mask(128)), frame, generated, view, matrix)
    assert np.abs(result.astype(int) - frame).max() <= 6
    assert np.abs(255 * np.array(cast)).max() > 25, "the cast itself would be plainly visible"


def test_a_cast_that_varies_over_the_face_is_followed() -> None:
    """Light from one side in the source, none in the generated picture: no step may remain at the mask's edge."""
    ramp = np.linspace(60, 200, 640)
    frame = np.repeat(np.repeat(ramp[None, :, None], 480, 0), 3, 2).astype(np.uint8)
    matrix = face_at(1.2, 0, 320, 240)
    view = crop(frame, matrix, 96)
    generated = np.full((96, 96, 3), view.mean() / 255, np.float32)
    result = composited(Compositor(mouth_mask(96)), frame, generated, view, matrix).astype(int)
    assert np.abs(np.diff(result, axis=1)).max() <= 4
    assert np.abs(np.diff(result, axis=0)).max() <= 4
    assert np.abs(result - frame).max() < 15


def test_misplaced_edges_around_the_mask_do_not_tint_the_mouth() -> None:
    """A black collar beside the mask that the generated picture lacks is content, not colour."""
    frame = np.full((300, 300, 3), 170, np.uint8)
    matrix = face_at(1.6, 0, 150, 150)
    view = crop(frame, matrix, 96)
    view[-6:] = 0
    generated = np.full((96, 96, 3), 170 / 255, np.float32)
    result = composited(Compositor(mouth_mask(96)), frame, generated, view, matrix).astype(int)
    assert np.abs(result - frame).max() < 12


@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("scale", [0.7, 4.0])
def test_the_edge_is_soft_even_of_a_hard_mask_or_one_cut_off_by_the_crop(cut_off: bool, scale: float) -> None:
    """White into black without kept pixels to estimate the colour from: the mask's edge is the steepest step."""
    size = 96
    mask = np.zeros((size, size), np.float32) if cut_off else mouth_mask(size)
    frame = np.zeros((800, 800, 3), np.uint8)
    matrix = face_at(scale, 0, 400, 400)
    compositor = Compositor(mask)
    compositor.mask.trusted[:] = 0
    result = composited(compositor, frame, np.ones((size, size, 3), np.float32), crop(frame, matrix, size), matrix)
    assert result.max() == 255
    crop_pixels = np.linalg.norm(crop_matrix(matrix, size)[:, :2], axis=1).max()  # crop pixels per source pixel
    steepest = max(np.abs(np.diff(result.astype(int), axis=axis)).max() for axis in (0, 1))
    assert steepest < 255 * min(0.6, 0.45 * crop_pixels + 0.02)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((2, 3)),
        np.array([[1.0, 2, 3], [2, 4, 6]]),
        np.full((2, 3), np.nan),
        np.array([[1e-9, 0, 0], [0, 1e-9, 0]]),
        np.array([[1e9, 0, 0], [0, 1e9, 0]]),
        face_at(2, 0, 5000, -4000),
    ],
)
def test_without_a_face_the_frame_is_unchanged(matrix: Array) -> None:
    frame = smooth_picture(60, 80)
    view, generated = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32, 3), np.float32)
    result = composited(Compositor(mouth_mask(32)), frame, generated, view, matrix)
    np.testing.assert_array_equal(result, frame)
    assert not np.shares_memory(result, frame)


def test_a_mask_that_keeps_everything_keeps_everything() -> None:
    frame, matrix = smooth_picture(60, 80), face_at(8, 0, 40, 30)
    keep = Compositor(np.ones((32, 32), np.float32))
    result = composited(keep, frame, np.ones((32, 32, 3), np.float32), crop(frame, matrix, 32), matrix)
    np.testing.assert_array_equal(result, frame)


@pytest.mark.parametrize(
    "mask", [np.ones((4, 5)), np.ones(16), np.full((8, 8), 1.5), np.full((8, 8), np.nan), np.zeros((0, 0))]
)
def test_rejects_an_invalid_mask(mask: Array) -> None:
    with pytest.raises(ConfigError):
        Compositor(mask.astype(np.float32))


def test_broken_crops_are_internal_errors() -> None:
    frame, matrix = smooth_picture(60, 80), face_at(8, 0, 40, 30)
    compositor, view = Compositor(mouth_mask(32)), np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(LipStreamInternalError):
        composited(compositor, frame, np.zeros((16, 16, 3), np.float32), view, matrix)
    with pytest.raises(LipStreamInternalError):
        composited(compositor, frame, np.full((32, 32, 3), np.nan, np.float32), view, matrix)
