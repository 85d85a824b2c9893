"""The clips of a training on disk: what is drawn again after an interruption is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lipstream_models import STUDENTS
from lipstream_models.mel import LOOKAHEAD, LOOKBACK, SAMPLES_PER_FRAME
from lipstream_training import clip_set
from lipstream_training.clip_set import make_clips

TINY = STUDENTS["tiny"]


class CutError(Exception):
    """In place of a kill."""


def test_an_interrupted_run_continues_and_gives_the_same_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader", reason="needs the extra [training]")
    monkeypatch.setattr(clip_set, "_BLOCK", 2)
    made: list[int] = []
    make = clip_set._make

    def counted(job: Any) -> Any:
        if len(made) == 3:
            raise CutError
        made.append(job[0])
        return make(job)

    monkeypatch.setattr(clip_set, "in_processes", lambda function, jobs: map(function, jobs))
    expected = make_clips(tmp_path / "whole", TINY, 5, 5, 1.0)
    monkeypatch.setattr(clip_set, "_make", counted)
    with pytest.raises(CutError):
        make_clips(tmp_path / "cut", TINY, 5, 5, 1.0)
    made.clear()
    monkeypatch.setattr(clip_set, "_make", lambda job: (made.append(job[0]), make(job))[1])
    found = make_clips(tmp_path / "cut", TINY, 5, 5, 1.0)
    assert made == [2, 3, 4]  # two were saved
    for name in ("target", "reference", "identity", "audio", "mouth"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.target.shape == (5, 5, *TINY.crop_size, 3)
    assert found.audio.shape == (5, LOOKBACK + 5 * SAMPLES_PER_FRAME + LOOKAHEAD)
    assert len({clip.tobytes() for clip in found.target}) == 5
    made.clear()
    make_clips(tmp_path / "cut", TINY, 5, 5, 1.0)
    assert not made


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.35, 35), (1.0, 100)])
def test_the_share_of_drawn_people_is_spread_evenly(share: float, count: int) -> None:
    chosen = [clip_set._is_drawn(index, share) for index in range(100)]
    assert sum(chosen) == count
    if count:
        assert all(any(chosen[i : i + 4]) for i in range(96))
