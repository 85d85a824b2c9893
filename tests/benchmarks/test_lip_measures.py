"""The measures themselves, on lips and pictures with planted faults of known size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from lipstream.bundle import Bundle
from lipstream.face import crop_matrix
from lipstream_training.data.people3d.visemes import ARTICULATORS, VisemeTrack
from numpy.typing import NDArray

from benchmarks.lips.movement import amplitude, closed_below, closing, following, follows
from benchmarks.lips.people import Wanted, closures
from benchmarks.lips.picture import Area, colour_step, grid, identity, sharpness
from benchmarks.lips.tracks import Frames, Lips

FRAMES, MARGIN = 6, 16  # pixels of the frame around the crop


@pytest.fixture(scope="module")
def area() -> Area:
    return Area.of(Bundle.load("tiny"))


def lips_of(gap: NDArray[np.float64], width: NDArray[np.float64] | None = None) -> Lips:
    n = len(gap)
    return Lips(gap, gap if width is None else width, np.zeros((n, 4)), np.zeros((n, 2, 3)))


@pytest.fixture(scope="module")
def placed(area: Area) -> Lips:
    """Faces whose crop is that of the frame's pixels from (16, 16) on, one to one."""
    left, top, right, bottom = area.box
    scale = np.array([right - left, bottom - top]) / area.size
    offset = np.array([left, top]) + (0.5 - MARGIN) * scale - 0.5
    matrix = np.column_stack([np.diag(scale), offset])
    to_crop = crop_matrix(matrix, area.size, area.box)
    np.testing.assert_allclose(to_crop, [[1, 0, -MARGIN], [0, 1, -MARGIN]], atol=1e-9)
    lips = np.tile([30.0, 40.0, 66.0, 66.0], (FRAMES, 1))
    return Lips(np.zeros(FRAMES), np.ones(FRAMES), lips, np.tile(matrix, (FRAMES, 1, 1)))


@pytest.fixture(scope="module")
def source(area: Area) -> Frames:
    """Texture of all scales."""
    rng = np.random.default_rng(0)
    side = area.size + 2 * MARGIN
    scales = [cv2.GaussianBlur(rng.normal(0, 20 * s, (side, side, 3)), (0, 0), s) for s in (0.7, 1.5, 3, 8)]
    still = 128 + np.sum(scales, axis=0)
    moved = [np.roll(still, (i, -i), axis=(0, 1)) for i in range(FRAMES)]
    return np.clip(moved, 0, 255).astype(np.uint8)


def generated(source: Frames, change: NDArray[np.float64], area: Area) -> Frames:
    """The source with `change` [S, S] added to its crops, as opaque as the mask lets it be."""
    result = source.astype(np.float64)
    inner = np.s_[:, MARGIN : MARGIN + area.size, MARGIN : MARGIN + area.size]
    result[inner] += (change * area.alpha)[..., None]
    return np.clip(np.round(result), 0, 255).astype(np.uint8)


def token_blocks(area: Area, deviation: float) -> NDArray[np.float64]:
    """Another random level in each token, [S, S]."""
    tokens = area.size // area.token
    levels = np.random.default_rng(1).normal(0, deviation, (tokens, tokens))
    return np.kron(levels, np.ones((area.token, area.token)))


def test_planted_blocks_raise_the_grid_and_a_blur_does_not(area: Area, source: Frames, placed: Lips) -> None:
    """Blocks of half a token's offset are no blocks of tokens."""
    blocks = token_blocks(area, 12)
    blur = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in source])
    assert grid(source, source, placed, area) == 1
    assert grid(blur, source, placed, area) == pytest.approx(1, abs=0.1)
    assert grid(generated(source, blocks, area), source, placed, area) > 1.2
    assert grid(generated(blur, blocks, area), source, placed, area) > 2
    assert grid(generated(source, np.roll(blocks, (area.token // 2,) * 2, (0, 1)), area), source, placed, area) < 1.05


def test_blocks_raise_the_sharpness_of_a_blur(area: Area, source: Frames, placed: Lips) -> None:
    """Why sharpness is never read without the grid."""
    blocks = token_blocks(area, 25)
    blur = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in source])
    soft, fooled = (sharpness(x, source, placed) for x in (blur, generated(blur, blocks, area)))
    assert soft < 0.2
    assert fooled > soft + 0.2


@pytest.mark.parametrize("levels", [10.0, -10.0])
def test_a_step_of_colour_is_read_in_levels(area: Area, source: Frames, placed: Lips, levels: float) -> None:
    flat = np.full((area.size, area.size), levels)
    middle = np.zeros_like(flat)
    inner = slice(area.size * 5 // 16, area.size * 11 // 16)
    middle[inner, inner] = levels
    assert colour_step(generated(source, flat, area), source, placed, area) == pytest.approx(10, abs=1)
    assert colour_step(generated(source, middle, area), source, placed, area) < 0.5
    assert colour_step(source, source, placed, area) == 0


def test_identity_compares_the_frames_in_which_both_mouths_are_closed(source: Frames, placed: Lips) -> None:
    closed = np.arange(FRAMES) < 4
    other = source.copy()
    other[4:] = 0  # open: not looked at
    assert identity(other, source, placed, closed) == pytest.approx(1)
    assert identity(source[:, ::-1, ::-1].copy(), source, placed, closed) < 0.5
    assert np.isnan(identity(source, source, placed, np.arange(FRAMES) < 2))


def test_a_closure_missed_is_counted() -> None:
    """Of four, one is met in time, one a frame late, one two frames late, one not at all."""
    opening = np.full(60, 0.3, np.float32)
    opening[50:54] = 0.8
    wanted = Wanted(opening, opening, opening, [(10, 11), (20, 21), (30, 31), (40, 40)])
    gap = np.full(60, 0.2)
    gap[[10, 22, 33, 50]] = 0.01
    gap[52] = np.nan  # no face is no closure
    other = Wanted(opening, opening, opening, [(50, 51), (57, 57)])
    found = closing(gap, {"B": wanted, "C": other}, 0.05)
    assert found == {"closures": 0.5, "closures_other": 0.5, "false_closures": 0.25}


def test_closed_is_near_the_least_gap_of_the_source() -> None:
    """Whatever FaceMesh calls closed for this face, and one wrong frame aside."""
    gap = np.tile(np.linspace(0.1, 0.3, 50), 4)
    assert closed_below(lips_of(gap)) == pytest.approx(0.14, abs=0.005)
    gap[7] = 3.0
    assert closed_below(lips_of(gap)) == pytest.approx(0.14, abs=0.005)


def test_closures_are_where_the_lips_are_pressed() -> None:
    articulators = np.zeros((12, len(ARTICULATORS)), np.float32)
    articulators[:, ARTICULATORS.index("press")] = [0.9, 0, 0.12, 0.6, 0.8, 0.3, 0, 0, 0, 0, 0.5, 0.7]
    articulators[6:8, ARTICULATORS.index("tuck")] = 1  # f, v: the lip is on the teeth
    assert closures(VisemeTrack(articulators)) == [(0, 0), (3, 4), (11, 11)]


def test_amplitude_halved_is_half() -> None:
    gap, width = np.random.default_rng(0).random((2, 50))
    less = lips_of(0.1 + 0.5 * gap, 1 - 0.25 * width)
    found = amplitude(less, lips_of(gap, width))
    assert found == pytest.approx({"amplitude_gap": 0.5, "amplitude_width": 0.25})


def test_a_mouth_follows_what_it_is_asked_and_not_the_rest() -> None:
    rng = np.random.default_rng(0)
    said = {name: Wanted(*rng.random((3, 200)).astype(np.float32), []) for name in "ABC"}
    found = following(lips_of(said["B"].opening * 0.3, 2 - said["B"].rounding), said)
    assert (found["gap"], found["rounding"]) == pytest.approx((1, 1))
    for name in ("gap_other", "gap_source", "width", "rounding_other"):
        assert abs(found[name]) < 0.25
    still = following(lips_of(np.full(200, 0.1)), said)
    assert still["gap"] == still["width"] == 0
    assert np.isnan(follows(rng.random(200), np.zeros(200)))
