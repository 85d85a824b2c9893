"""The measures of lip accuracy, on drawn people whose mouths are known, and the benchmark's runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from lipstream import samples
from lipstream.bundle import Bundle
from lipstream.errors import ConfigError
from lipstream_evaluate.statistics import correlation
from lipstream_training.data.people3d.natural import natural_available

from benchmarks import lip_accuracy
from benchmarks.lip_accuracy import LIMITS, judge, verdict, within
from benchmarks.lips.people import Case, drawn_case, rendered_case
from benchmarks.lips.picture import Area, flicker, paste, sharpness
from benchmarks.lips.real import clips, following_loudness
from benchmarks.lips.tracks import track_lips

SECONDS = 2.4
needs_people = pytest.mark.skipif(not natural_available(), reason="needs the extra [people]")


@pytest.fixture(scope="module")
def case() -> Case:
    return drawn_case(0, SECONDS)


@pytest.fixture(scope="module")
def area() -> Area:
    return Area.of(Bundle.load("tiny"))


def test_the_drawings_differ_in_the_mouth_alone(case: Case) -> None:
    """Eyes and background are equal to the bit, since person, pose, light and noise are equal."""
    areas = track_lips(case.source).areas
    top = int(areas[:, 1].min() - 0.5 * np.ptp(areas[:, [0, 2]], axis=1).mean())
    assert top > 40
    assert (case.source[:, :top] == case.target[:, :top]).all()
    assert (case.source != case.target).any()


def test_a_perfect_result_passes_and_the_source_does_not(case: Case, area: Area) -> None:
    perfect, nothing_done = judge(case, case.target, area), judge(case, case.source, area)
    assert perfect["width"] == perfect["width_ceiling"] > 0.4
    assert nothing_done["width"] < perfect["width"] - 0.2
    assert perfect["gap"] == perfect["gap_ceiling"] > 0.8
    assert perfect["gap_other"] < 0.6
    assert nothing_done["gap"] < 0.5
    assert nothing_done["gap_source"] > 0.85
    assert perfect["grid"] == pytest.approx(1, abs=0.1)
    assert perfect["closures"] == perfect["closures_ceiling"]
    assert {*LIMITS["drawn"]} <= {*perfect}


@needs_people
def test_rendered_people_close_their_lips_where_the_phonemes_say(area: Area) -> None:
    case = rendered_case(0, 1.6)
    perfect, nothing_done = judge(case, case.target, area), judge(case, case.source, area)
    assert {*LIMITS["3d"]} <= {*perfect}
    assert perfect["closures"] == 1
    assert perfect["false_closures"] == 0
    assert perfect["gap"] > 0.8
    assert min(perfect["width"], perfect["rounding"]) > 0.5
    assert nothing_done["gap"] < perfect["gap"] - 0.3
    assert nothing_done["amplitude_gap"] == nothing_done["sharpness"] == nothing_done["grid"] == 1


def test_a_result_that_is_late_shows_only_in_the_lags(case: Case, area: Area) -> None:
    late = np.concatenate([case.target[:1], case.target[:-1]])
    found = judge(case, late, area)
    assert found["gap"] < found["gap_ceiling"] - 0.02
    assert found["gap_best"] > found["gap"]


def test_sharpness_and_flicker_are_1_for_the_source_and_less_for_a_blur(case: Case) -> None:
    lips = track_lips(case.source)
    assert sharpness(case.source, case.source, lips) == flicker(case.source, case.source, lips) == 1
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in case.source])
    assert sharpness(soft, case.source, lips) < 0.5
    still = np.broadcast_to(case.source[:1], case.source.shape)
    assert flicker(still, case.source, lips) == 0


def test_a_crop_pasted_back_is_nearly_the_source_and_a_small_one_is_not(case: Case, area: Area, bundle: Path) -> None:
    lips = track_lips(case.source)
    found, small = paste(case.source, lips, area), paste(case.source, lips, Area.of(Bundle.load(bundle)))
    assert 0.85 < found["paste"] < 1.1
    assert found["paste_psnr"] > 35
    assert small["paste"] < found["paste"] - 0.2  # 32 pixels show the whole canvas
    assert small["paste_psnr"] < found["paste_psnr"] - 5


def test_nothing_is_measured_where_there_is_no_face(case: Case) -> None:
    lips = track_lips([np.zeros_like(case.source[0]), case.source[0]])
    assert list(lips.seen) == [False, True]
    assert sharpness(case.source[:2], case.source[:2], lips) == 1


@pytest.mark.parametrize("lag", [-3, -1, 0, 2])
def test_lag_is_how_many_frames_the_first_comes_late(lag: int) -> None:
    rule = np.random.default_rng(0).random(100)
    mouth = np.roll(rule, lag)
    scores = {i: correlation(mouth, rule, i) for i in range(-3, 4)}
    assert scores[lag] == pytest.approx(1)
    assert all(abs(r) < 0.4 for i, r in scores.items() if i != lag)


def test_correlation_leaves_out_unseen_frames_but_not_most_of_them() -> None:
    a = np.arange(10.0)
    gaps = np.where(np.arange(10) % 2 == 0, a, np.nan)
    assert correlation(gaps, a) == pytest.approx(1)
    gaps[0] = np.nan
    assert np.isnan(correlation(gaps, a))
    assert np.isnan(correlation(np.ones(10), a))


def test_a_mouth_that_follows_the_loudness_late_is_matched_and_other_speech_is_not() -> None:
    rng = np.random.default_rng(0)
    voice, *others = (np.repeat(rng.random(100), 640) * np.sin(np.arange(64_000)) for _ in range(5))
    loud = np.abs(voice).reshape(100, 640).max(axis=1)
    found = following_loudness(np.roll(loud, 2), voice.astype(np.float32), [x.astype(np.float32) for x in others])
    assert found["gap"] > 0.99
    assert found["lag"] == 2
    assert abs(found["gap_other"]) < 0.2


def test_the_verdict_names_what_is_missed() -> None:
    each = [{"gap": 0.9, "grid": 1.2, "identity": math.nan}, {"gap": 0.9, "grid": 1.1, "identity": math.nan}]
    limits = {"gap": (0.85, None), "grid": (None, 1.1), "identity": (0.5, None)}
    found = verdict(each, limits)
    assert found["missed"] == ["grid", "identity"]  # identity is not known anywhere
    assert found["means"]["grid"]["mean"] == pytest.approx(1.15)
    assert within(1.0, (0.7, 1.3))
    assert not within(1.4, (0.7, 1.3))


def test_a_run_on_drawn_people(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With random weights the verdict is FAIL, and all requested files are written."""
    result, sheet = tmp_path / "result.json", tmp_path / "sheet.png"
    options = ["--bundle", str(bundle), "--threads", "1", "--json", str(result), "--sheet", str(sheet)]
    options += ["--kind", "drawn", "--people", "2", "--seconds", "1.2"]
    assert not lip_accuracy.run(lip_accuracy.build_parser().parse_args(options))
    assert "FAIL: drawn: " in capsys.readouterr().out
    found = json.loads(result.read_text())["results"]
    assert list(found["kinds"]) == ["drawn"]
    drawn = found["kinds"]["drawn"]
    assert len(drawn["people"]) == 2
    each = [person["gap_ceiling"] for person in drawn["people"]]
    assert drawn["means"]["gap_ceiling"]["mean"] == pytest.approx(np.mean(each), rel=1e-5)
    assert sheet.read_bytes().startswith(b"\x89PNG")


@needs_people
def test_a_run_on_real_clips(bundle: Path, tmp_path: Path) -> None:
    """A file is dubbed with two voices; the report names it without its folder."""
    result = tmp_path / "result.json"
    options = ["--bundle", str(bundle), "--threads", "1", "--json", str(result), "--seconds", "1.2"]
    assert not lip_accuracy.run(lip_accuracy.build_parser().parse_args([*options, "--real", str(samples.FACE)]))
    report = json.loads(result.read_text())
    assert report["options"]["real"] == ["face.mp4"]
    real = report["results"]["kinds"]["real"]
    assert {*real["clips"]["face.mp4"]} == {"sample", "natural"}
    assert real["clips"]["face.mp4"]["sample"]["faces_lost"] == 0
    assert real["means"]["paste"]["values"] == 2


def test_a_folder_stands_for_its_videos(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mkv", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in clips([tmp_path])] == ["a.mkv", "b.mp4"]
    assert clips([samples.FACE]) == [samples.FACE]


@needs_people
def test_a_folder_without_a_video_is_refused(bundle: Path, tmp_path: Path) -> None:
    options = lip_accuracy.build_parser().parse_args(["--bundle", str(bundle), "--real", str(tmp_path)])
    with pytest.raises(ConfigError, match="no video in"):
        lip_accuracy.run(options)
