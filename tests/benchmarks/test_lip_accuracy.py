"""The measures of lip accuracy, on drawn people whose mouths are known."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from lipstream import samples
from lipstream_evaluate.faces import track_faces
from lipstream_evaluate.statistics import correlation

from benchmarks import lip_accuracy
from benchmarks.lip_accuracy import Case, draw_case, judge
from benchmarks.mouth_metrics import distance_from_rest, look, summary

SECONDS = 2.4


@pytest.fixture(scope="module")
def case() -> Case:
    return draw_case(0, SECONDS)


def test_the_drawings_differ_in_the_mouth_alone(case: Case) -> None:
    """Eyes and background of the three are equal to the bit, since person, pose, light and noise are equal."""
    top = int(case.rest_lips[..., 1].min() - 1.2 * np.ptp(case.rest_lips[..., 0], axis=1).mean())
    assert top > 40
    assert (case.source[:, :top] == case.target[:, :top]).all()
    assert (case.source[:, :top] == case.rest[:, :top]).all()
    assert (case.source != case.target).any()


def test_a_perfect_result_passes_and_the_source_does_not(case: Case) -> None:
    perfect, nothing_done = judge(case, case.target), judge(case, case.source)
    assert perfect["lip_width"]["matched"] == perfect["lip_width"]["ceiling"] > 0.4
    assert nothing_done["lip_width"]["matched"] < perfect["lip_width"]["matched"] - 0.2
    for measure in ("lip_gap", "rest_diff"):
        assert perfect[measure]["matched"] == perfect[measure]["ceiling"] > 0.85
        assert perfect[measure]["other_audio"] < 0.6
        assert nothing_done[measure]["matched"] == nothing_done[measure]["source_mouth"] < 0.5
        assert nothing_done[measure]["source_speech"] > 0.85


def test_a_result_that_is_late_shows_only_in_the_lags(case: Case) -> None:
    late = np.concatenate([case.target[:1], case.target[:-1]])
    found = judge(case, late)["lip_gap"]
    assert found["matched"] < found["ceiling"] - 0.02
    assert found["matched_best_of_3_lags"] > found["matched"]


def test_relative_sharpness_is_1_for_the_source_and_less_for_a_blur(case: Case) -> None:
    same = look(case.source, case.source)
    assert same.sharpness == pytest.approx(1)
    assert same.unrest(np.ones(len(case.source), bool)) == pytest.approx(1)
    soft = look([cv2.GaussianBlur(frame, (0, 0), 2) for frame in case.source], case.source)
    assert soft.sharpness < 0.5
    np.testing.assert_array_equal(soft.source_gap, same.gap)


def test_distance_from_rest_is_zero_at_rest(case: Case) -> None:
    assert (distance_from_rest(case.rest, case.rest, case.rest_lips) == 0).all()


def test_the_lip_gap_is_nan_without_a_face(case: Case) -> None:
    frames = [np.zeros_like(case.source[0]), case.source[0]]
    assert list(np.isnan(track_faces(frames).gap)) == [True, False]


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


def test_confidence_interval() -> None:
    """Against the normal approximation, which holds for the mean of many."""
    x = np.random.default_rng(1).normal(0.5, 0.1, 400)
    found = summary(list(x))
    error = 1.96 * x.std() / 20
    assert found["mean"] == pytest.approx(x.mean())
    assert found["ci95"] == pytest.approx([x.mean() - error, x.mean() + error], abs=0.1 * error)
    assert np.isnan(summary([0.5, float("nan")])["mean"])


def test_a_run_on_drawn_people(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With random weights the verdict is FAIL, and all requested files are written."""
    result, sheet = tmp_path / "result.json", tmp_path / "sheet.png"
    options = ["--bundle", str(bundle), "--threads", "1", "--json", str(result), "--sheet", str(sheet)]
    args = lip_accuracy.build_parser().parse_args([*options, "--people", "2", "--seconds", "1.2"])
    assert not lip_accuracy.run(args)
    assert "FAIL" in capsys.readouterr().out
    found = json.loads(result.read_text())["results"]
    assert len(found["people"]) == 2
    for measure in lip_accuracy.MEASURES:
        each = [person[measure]["ceiling"] for person in found["people"]]
        assert found["means"][measure]["ceiling"]["mean"] == pytest.approx(np.mean(each), rel=1e-5)
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_a_run_on_files(bundle: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = ["--bundle", str(bundle), "--threads", "1", "--json", str(result)]
    files = ["--video", str(samples.FACE), "--audio", str(samples.FACE)]
    assert lip_accuracy.run(lip_accuracy.build_parser().parse_args([*options, *files]))
    found = json.loads(result.read_text())["results"]
    own = found["source_mouth"]["rule"]
    assert own["0"] > 0.8  # the sample's face was drawn by the rule, with the sound that it carries
    assert own["0"] > own["3"]
    assert set(found["other_audio"]["loudness"]) == {str(lag) for lag in range(-3, 4)}
