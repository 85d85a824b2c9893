"""The share of each folder in training, counted clip by clip."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lipstream.errors import ConfigError
from lipstream_training.distil.mixture import Mixture
from lipstream_training.distil.rollout import Batch
from lipstream_training.distil.trainer import Trainer
from toy_distillation import RECIPE, Clips, networks

SIZES = (40, 10, 50)


def folder(clip: int) -> int:
    """The folder of a clip that is numbered through SIZES."""
    return 0 if clip < 40 else 1 if clip < 50 else 2


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((1, 1, 2), (25, 25, 50)), ((0.2, 0.7, 0.1), (20, 70, 10)), ((1, 1, 1), (34, 33, 33)), (None, SIZES)],
)
def test_every_epoch_has_each_folder_by_its_weight(
    weights: tuple[float, ...] | None, expected: tuple[int, ...]
) -> None:
    mixture = Mixture(SIZES, weights, seed=1)
    for epoch in range(4):
        counted = Counter(folder(mixture.clip(100 * epoch + i)) for i in range(100))
        assert tuple(counted[i] for i in range(3)) == expected


def test_clips_of_a_folder_are_used_equally_often() -> None:
    """After any number of samples, those of one folder differ by at most one."""
    mixture = Mixture(SIZES, (1, 1, 2), seed=1)
    times: Counter[int] = Counter()
    for number in range(730):
        times[mixture.clip(number)] += 1
        for clips in (range(40), range(40, 50), range(50, 100)):
            counts = [times[clip] for clip in clips]
            assert max(counts) - min(counts) <= 1


def test_the_order_depends_on_the_seed_and_not_on_what_was_asked_before() -> None:
    whole = [Mixture(SIZES, (3, 1, 1), seed=2).clip(i) for i in range(300)]
    again = Mixture(SIZES, (3, 1, 1), seed=2)
    backwards = [again.clip(i) for i in reversed(range(300))]
    assert backwards[::-1] == whole
    assert [Mixture(SIZES, (3, 1, 1), seed=2).clip(i) for i in (250, 3)] == [whole[250], whole[3]]
    assert whole[:100] != whole[100:200]
    assert whole != [Mixture(SIZES, (3, 1, 1), seed=3).clip(i) for i in range(300)]
    halves = [[folder(clip) for clip in whole[i : i + 50]] for i in (0, 50)]
    assert all(1 < part.count(1) < 19 for part in halves)  # the folders alternate


def test_impossible_weights_are_refused() -> None:
    for weights in ((0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1e-6, 1)):
        with pytest.raises(ConfigError):
            Mixture((5, 5), weights)


class Counted(Clips):
    """Clips that are counted when they are read."""

    def __init__(self) -> None:
        super().__init__(count=8)
        self.read: list[int] = []

    def batch(self, clips: tuple[int, ...]) -> Batch:
        self.read += clips
        return super().batch(clips)


def test_an_interrupted_run_continues_with_the_same_clips(tmp_path: Path) -> None:
    recipe = replace(RECIPE, stage="forcing", iterations=8)

    def run(out: Path, *ends: int) -> tuple[list[int], dict[str, torch.Tensor]]:
        read: list[int] = []
        for end in ends:
            data = Counted()
            trainer = Trainer(recipe, networks(recipe), data, out, order=Mixture((6, 2), (1, 3)))
            trainer.run(end)
            read += data.read
        return read, trainer.weights()

    whole, weights = run(tmp_path / "whole", 8)
    parts, resumed = run(tmp_path / "parts", 3, 5, 8)
    assert parts == whole
    assert sum(clip >= 6 for clip in whole) == 12  # 3 of 4, of 8 updates of two clips
    assert all(torch.equal(resumed[name], x) for name, x in weights.items())
