"""Frames in which a generated mouth cannot be right: said in each frame and, with `doubtful="bypass"`, left alone."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from lipstream import FaceOptions, LipSyncEngine
from lipstream.errors import ConfigError
from lipstream.face import Doubt, MouthWatch
from lipstream.session import Frame
from numpy.typing import NDArray
from odd_files import covered, hand, portrait, smiley
from voice_and_video import voice

COVERED = np.stack(covered(hand, (212, 168, 143)))
COVERED_FROM = 17
"""From this frame on the hand is in place."""


def spoken(engine: LipSyncEngine, source: NDArray[np.uint8], face: FaceOptions, *, prepare: bool) -> list[Frame]:
    reference = engine.prepare(source, face=face) if prepare else source
    with engine.session(reference, face=face) as session:
        session.push_audio(voice(len(source) / 25), 16_000)
        session.flush()
        return list(session)


@pytest.mark.parametrize("prepare", [False, True])
def test_a_covered_mouth_is_painted_and_said(engine: LipSyncEngine, prepare: bool) -> None:
    frames = spoken(engine, COVERED, FaceOptions(), prepare=prepare)[: len(COVERED) - 12]
    assert not any(frame.doubt for frame in frames[:6])
    assert all(frame.doubt == "covered" for frame in frames[COVERED_FROM - 4 :])
    assert not any(frame.bypassed for frame in frames)


@pytest.mark.parametrize("prepare", [False, True])
def test_a_covered_mouth_is_left_alone(engine: LipSyncEngine, prepare: bool) -> None:
    frames = spoken(engine, COVERED, FaceOptions(doubtful="bypass"), prepare=prepare)[: len(COVERED) - 12]
    assert [frame.bypassed for frame in frames] == [frame.doubt is not None for frame in frames]
    assert any(frame.bypassed for frame in frames)
    for frame in frames:
        changed = (frame.image != COVERED[frame.index]).any()
        assert changed != frame.bypassed


def test_a_flat_drawing_is_said(engine: LipSyncEngine) -> None:
    frames = spoken(engine, smiley()[None], FaceOptions(), prepare=False)
    assert {frame.doubt for frame in frames} == {"flat"}
    shown = spoken(engine, portrait()[None], FaceOptions(), prepare=False)
    assert {frame.doubt for frame in shown} == {None}


def test_a_change_of_light_is_no_doubt() -> None:
    watch = MouthWatch()
    crop = portrait()[120:184, 110:174]
    shades = [np.asarray(crop * (1 - 0.4 * k / 20), np.uint8) for k in range(20)]
    assert [watch(shade, 0) for shade in shades] == [None] * 20


def test_another_scene_is_not_compared() -> None:
    watch = MouthWatch()
    crop = portrait()[120:184, 110:174]
    assert watch(crop, 0) is None
    assert watch(255 - crop, 0) == "covered"
    assert watch(255 - crop, 1) is None


def test_options() -> None:
    assert get_args(Doubt) == ("covered", "flat")
    with pytest.raises(ConfigError, match="doubtful"):
        FaceOptions(doubtful="ask")  # type: ignore[arg-type]
