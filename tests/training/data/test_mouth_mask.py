"""The generated region: a U around mouth and chin."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from lipstream_models import STUDENTS
from lipstream_training.data.clips import align, crop_matrix, evaluation_rng
from lipstream_training.data.faces import FacePainter, Pose
from lipstream_training.data.identity import Identity
from lipstream_training.data.lips import MouthShape
from lipstream_training.data.mask import compositing_mask, latent_mask, mouth_mask


@pytest.mark.parametrize("size", [96, 256, 512])
def test_shape_of_the_region(size: int) -> None:
    mask = mouth_mask(size)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert np.array_equal(mask, mask[:, ::-1])
    rows, columns = np.flatnonzero((mask == 0).any(1)) / size, np.flatnonzero((mask == 0).any(0)) / size
    assert rows[0] == pytest.approx(0.06, abs=0.02)
    assert rows[-1] == pytest.approx(0.95, abs=0.02)
    assert columns[0] == pytest.approx(0.05, abs=0.02)
    parts, _ = cv2.connectedComponents((mask == 0).astype(np.uint8))
    assert parts == 2  # the region is in one piece, and so is its complement's label 0
    assert 0.55 < (mask == 0).mean() < 0.8


@pytest.mark.parametrize("spatial", [4, 8])
def test_latent_mask_is_the_mask_so_many_times_smaller(spatial: int) -> None:
    small, side = latent_mask(96, spatial), 96 // spatial
    assert small.shape == (side, side)
    share = mouth_mask(96).reshape(side, spatial, side, spatial).mean((1, 3))
    sure = (share == 0) | (share == 1)
    assert np.array_equal(small[sure], share[sure])
    with pytest.raises(ValueError, match="multiple of"):
        latent_mask(98, spatial)


def test_compositing_edge_lies_inside_the_region() -> None:
    keep, soft = mouth_mask(256), compositing_mask(256)
    assert np.all(soft[keep == 1] == 1)
    assert soft.min() < 0.01
    assert soft[int(0.65 * 256), 128] < 0.01  # the mouth is wholly generated
    assert np.abs(np.diff(soft, axis=0)).max() < 0.2


def test_mouths_of_aligned_faces_move_inside_the_region() -> None:
    keep = mouth_mask(64) == 1
    for index in range(12):
        painter = FacePainter(Identity.random(evaluation_rng(index)))
        to_crop = crop_matrix(align(painter.landmarks3(Pose())), 64, STUDENTS["tiny"].crop_box)
        shapes = [MouthShape(), MouthShape(1, 0, 0, 0.5), MouthShape(0.2, 1, 1, 1)]
        closed, *others = (p.astype(int) for p in painter.render(Pose(), shapes, to_crop, (64, 64)))
        for other in others:
            change = np.abs(closed - other).sum(-1)
            assert change[keep].sum() < 0.03 * change.sum()
