"""What a validation measures and draws of clips that are not trained on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lipstream_evaluate.syncnet import load_syncnet, sync_score
from lipstream_models.mel import PAST_FRAMES, SAMPLES_PER_FRAME
from lipstream_training.data.clips import Clip, draw_clip
from lipstream_training.data.speech import synthesiser_available
from lipstream_training.distil.held_out import HeldOut
from numpy.typing import NDArray
from torch import Tensor
from toy_distillation import FRAMES, RECIPE, Clips, networks

pytestmark = pytest.mark.skipif(not synthesiser_available(), reason="espeakng-loader is missing")
SIZE, LENGTH = 64, 4 * FRAMES - 3
CLIPS = (4, 6)


@pytest.fixture(scope="module")
def drawn() -> dict[int, Clip]:
    """The held out clips: whole faces of drawn people who speak."""
    box = (0.0, 0.0, 420.0, 560.0)
    return {clip: draw_clip(np.random.default_rng(clip), LENGTH, SIZE, box) for clip in CLIPS}


class Watched:
    """Decodes the true latents of a clip to its drawing, and others to grey, which grows lighter."""

    def __init__(self, data: Clips, drawn: dict[int, Clip]) -> None:
        self._data, self._drawn = data, drawn
        self.made: list[Tensor] = []

    def __call__(self, latents: Tensor) -> Tensor:
        for clip, one in self._drawn.items():
            if torch.equal(latents[0], self._data.target[clip]):
                return torch.from_numpy(one.target).permute(0, 3, 1, 2)[None] / 255
        self.made.append(latents)
        return torch.linspace(0, 1, LENGTH).view(1, -1, 1, 1, 1).expand(1, LENGTH, 3, SIZE, SIZE)


def held_out(folder: Path, drawn: dict[int, Clip], syncnet: str = "") -> tuple[HeldOut, Watched]:
    data = Clips()
    decode = Watched(data, drawn)
    net = load_syncnet(syncnet) if syncnet else None
    sounds = {clip: one.audio for clip, one in drawn.items()}
    return HeldOut(networks(), "forcing", data, CLIPS, sounds.__getitem__, decode, folder, net), decode


def spoken(clip: Clip) -> NDArray[np.float32]:
    first = PAST_FRAMES * SAMPLES_PER_FRAME
    return clip.audio[first : first + LENGTH * SAMPLES_PER_FRAME]


def test_true_clips_have_the_scores_of_their_videos(drawn: dict[int, Clip], tmp_path: Path) -> None:
    show, _ = held_out(tmp_path, drawn, "drawn")
    numbers, _ = show(networks().model, 1)
    assert {*numbers} == {f"validation/{name}" for name in ("sync_c", "sync_d", "true/sync_c", "true/sync_d")}
    net = load_syncnet("drawn")
    scores = [sync_score(net, one.target, spoken(one)) for one in drawn.values()]
    assert numbers["validation/true/sync_d"] == pytest.approx(np.mean([x.distance for x in scores if x]), rel=0.02)
    assert numbers["validation/true/sync_c"] == pytest.approx(np.mean([x.confidence for x in scores if x]), rel=0.05)
    assert numbers["validation/sync_c"] < numbers["validation/true/sync_c"]


def test_without_syncnet_the_lips_are_compared_with_the_loudness(drawn: dict[int, Clip], tmp_path: Path) -> None:
    """Grey pictures show no face, so that they have no measure."""
    numbers, _ = held_out(tmp_path, drawn)[0](networks().model, 1)
    assert {*numbers} == {"validation/true/opening"}
    expected = []
    for one in drawn.values():
        loud = np.sqrt(np.square(spoken(one).reshape(LENGTH, -1)).mean(axis=1))
        expected.append(np.corrcoef(one.mouth.stacked()[:LENGTH, 0], loud)[0, 1])  # the opening that was drawn
    assert numbers["validation/true/opening"] == pytest.approx(np.mean(expected), abs=0.1)


def test_true_frames_are_above_generated_ones(drawn: dict[int, Clip], tmp_path: Path) -> None:
    _, pictures = held_out(tmp_path, drawn)[0](networks().model, 30)
    picture = pictures["validation/clips"]
    assert picture.shape == (4 * SIZE, 8 * SIZE, 3)
    for row, one in enumerate(drawn.values()):
        first, last = picture[2 * row * SIZE :][:SIZE, :SIZE], picture[2 * row * SIZE :][:SIZE, -SIZE:]
        np.testing.assert_array_equal(first, one.target[0])
        np.testing.assert_array_equal(last, one.target[-1])
        grey = picture[(2 * row + 1) * SIZE, ::SIZE, 0].astype(int)
        assert (grey[0], grey[-1]) == (0, 255)
        assert (np.diff(grey) > 0).all()
    stored = cv2.imread(str(tmp_path / "0000030.png"))
    np.testing.assert_array_equal(stored[..., ::-1], picture)


def test_the_noise_is_the_same_each_time_and_other_for_each_clip(drawn: dict[int, Clip], tmp_path: Path) -> None:
    show, decode = held_out(tmp_path, drawn)
    model = networks(RECIPE).model
    state = torch.get_rng_state()
    show(model, 1)
    show(model, 2)
    assert torch.equal(torch.get_rng_state(), state)
    first, second, again, _ = decode.made
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
