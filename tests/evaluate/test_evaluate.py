"""`lipstream evaluate`: metrics against their libraries and against known changes of the videos."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import scipy.linalg
from lipstream.cli import main
from lipstream.errors import CheckpointError, ConfigError
from lipstream.media import VideoReader, VideoWriter
from lipstream_evaluate.cases import Case, find_cases, shift_between
from lipstream_evaluate.faces import face_crop, squares, track_faces
from lipstream_evaluate.judge import Verdict, judge, psnr
from lipstream_evaluate.networks import ArcFace, load_networks
from lipstream_evaluate.report import rows
from lipstream_evaluate.statistics import correlation, frechet, summary
from lipstream_evaluate.syncnet import DRAWN, load_syncnet
from lipstream_training.data.clips import draw_video, evaluation_rng
from lipstream_training.data.speech import SAMPLE_RATE, speech
from numpy.typing import NDArray
from onnx import TensorProto, helper
from skimage.metrics import peak_signal_noise_ratio

Frames = NDArray[np.uint8]
LENGTH = 50


@pytest.fixture(scope="module")
def person() -> tuple[Frames, NDArray[np.float32]]:
    """A drawn person who speaks, and the sound."""
    rng = np.random.default_rng([8, 0])
    while not (said := speech(LENGTH / 25, rng).clean).any():
        pass
    return draw_video(evaluation_rng(2000), said, (240, 288))[0], said


def write(path: Path, frames: Frames, sound: NDArray[np.float32] | None, rate: int | Fraction = 25) -> Path:
    path.parent.mkdir(exist_ok=True)
    with VideoWriter(
        path, frames.shape[2], frames.shape[1], rate=rate, audio_rate=SAMPLE_RATE, lossless=path.suffix == ".mkv"
    ) as writer:
        writer.write_audio(np.zeros(len(frames) * 640, np.float32) if sound is None else sound)
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture(scope="module")
def reference(person: tuple[Frames, NDArray[np.float32]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("evaluate") / "may.mkv", *person)


def judged(result: Path, reference: Path, networks: dict[str, object] | None = None) -> Verdict:
    return judge(Case("ours", "may", result, reference, result), load_syncnet(DRAWN), networks or {})


def test_a_video_compared_with_itself_is_perfect(reference: Path) -> None:
    found = judged(reference, reference).values
    assert found["ssim"] == found["ssim_mouth"] == found["ssim_outside"] == pytest.approx(1)
    assert found["psnr"] == found["psnr_mouth"] == 99
    assert found["opening_reference"] == pytest.approx(1)
    assert found["shift"] == found["sync_offset"] == 0
    assert found["opening_sound"] > 0.5


def test_only_the_changed_part_counts_as_changed(
    person: tuple[Frames, NDArray[np.float32]], reference: Path, tmp_path: Path
) -> None:
    frames, sound = person
    face = track_faces(iter(frames))
    spoilt = frames.copy()
    for frame, five in zip(spoilt, face.five, strict=True):
        x, y = five[3:].mean(0).astype(int)
        frame[y - 6 : y + 6, x - 10 : x + 10] = 0
    found = judged(write(tmp_path / "spoilt.mkv", spoilt, sound), reference).values
    assert found["psnr_outside"] > 90  # but for the margin of the windows it is untouched
    assert found["psnr_mouth"] < 35
    assert found["ssim_mouth"] < 0.97 < found["ssim_outside"]


def test_psnr_is_that_of_the_library() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)
    error = np.square(a.astype(np.float32) - b).mean(axis=2)
    assert psnr(error) == pytest.approx(peak_signal_noise_ratio(a, b), rel=1e-6)


@pytest.mark.parametrize("shift", [-4, 7])
def test_a_late_or_early_result_is_shifted_for_the_comparison(
    person: tuple[Frames, NDArray[np.float32]], reference: Path, tmp_path: Path, shift: int
) -> None:
    frames, sound = person
    moved = np.concatenate([frames[:1].repeat(shift, 0), frames[:-shift]]) if shift > 0 else frames[-shift:]
    verdict = judged(write(tmp_path / "moved.mkv", moved, sound), reference)
    assert verdict.values["shift"] == shift
    assert verdict.values["ssim"] == pytest.approx(1)
    assert any("against the reference" in note for note in verdict.notes)
    assert verdict.values["sync_offset"] == shift  # the sound stayed


def test_another_frame_rate_and_size_are_converted(
    person: tuple[Frames, NDArray[np.float32]], reference: Path, tmp_path: Path
) -> None:
    frames, sound = person
    at_30 = frames[[min(len(frames) - 1, round(i * 25 / 30)) for i in range(len(frames) * 30 // 25)]]
    small = np.stack([cv2.resize(frame, (216, 180), interpolation=cv2.INTER_AREA) for frame in at_30])
    verdict = judged(write(tmp_path / "small.mp4", small, sound, 30), reference)
    assert verdict.frames == len(frames)
    assert verdict.values["shift"] == 0
    assert 0.85 < verdict.values["ssim"] < 0.999
    assert "brought from 216 x 180" in " ".join(verdict.notes)


def test_with_another_aspect_ratio_only_the_lips_are_compared(
    person: tuple[Frames, NDArray[np.float32]], reference: Path, tmp_path: Path
) -> None:
    frames, sound = person
    verdict = judged(write(tmp_path / "cut.mkv", np.ascontiguousarray(frames[:, :, 40:-40]), sound), reference)
    assert "ssim" not in verdict.values
    assert "sync_c" in verdict.values
    assert "not compared" in " ".join(verdict.notes)


def test_no_face_and_no_sound_are_noted_not_raised(reference: Path, tmp_path: Path) -> None:
    grey = np.full((30, 240, 288, 3), 90, np.uint8)
    verdict = judged(write(tmp_path / "grey.mkv", grey, None), reference)
    assert math.isnan(verdict.values["opening_sound"])
    assert "sync_c" not in verdict.values
    assert "no face in 30 of 30 frames" in verdict.notes
    assert "the sound is silent" in verdict.notes


def test_shifts_are_zero_where_nothing_moves() -> None:
    still = [np.full((32, 32), 7, np.float32)] * 40
    assert shift_between(still, still) == 0


def test_frechet_distance_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    for n, m, d in ((200, 300, 5), (6, 9, 20)):
        a, b = rng.normal(size=(n, d)), rng.normal(0.3, 2, (m, d))
        root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
        assert frechet(a, b) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert frechet(a, a) == pytest.approx(0, abs=1e-9)
        assert frechet(a, a + 3) == pytest.approx(9 * d)
    assert math.isnan(frechet(np.zeros((1, 3)), np.zeros((5, 3))))


def test_means_have_their_interval() -> None:
    found = summary([1.0, 2.0, 3.0, math.nan])
    assert found["mean"] == 2
    low, high = found["ci95"]
    assert 1 <= low < 2 < high <= 3
    assert summary([1.0])["ci95"] is None
    assert summary([math.nan])["mean"] is None


def test_correlation_handles_lags_and_gaps() -> None:
    x = np.sin(np.arange(100) / 3)
    assert correlation(np.roll(x, 2), x, 2) == pytest.approx(1)
    with_gap = np.where(np.arange(100) % 5 == 0, np.nan, x)
    assert correlation(with_gap, x) == pytest.approx(1)
    assert math.isnan(correlation(np.ones(100), x))


def test_face_crops_have_the_published_margins(person: tuple[Frames, NDArray[np.float32]]) -> None:
    frame = person[0][0]
    x, y, half = square = np.array([140.0, 120.0, 50.0])
    crop = face_crop(frame, square, 140)  # 2 * 50 * 1.4 pixels: one to one
    padded = np.pad(frame, ((200, 200), (200, 200), (0, 0)), constant_values=110)
    top, left = int(y - half + 200), int(x - 1.4 * half + 200)
    np.testing.assert_array_equal(crop, padded[top : top + 140, left : left + 140])


def test_boxes_are_filled_in_frames_without_a_face() -> None:
    boxes = np.array([[0.0, 0, 10, 10]] * 20)
    boxes[5:8] = np.nan
    np.testing.assert_allclose(squares(boxes), np.array([[5.0, 5, 5]] * 20))
    assert np.isnan(squares(np.full((3, 4), np.nan))).all()


def face_recogniser(path: Path, size: int = 112) -> Path:
    """Embeds a picture as its mean colours over quarters."""
    nodes = [
        helper.make_node("AveragePool", ["face"], ["means"], kernel_shape=[size // 2] * 2, strides=[size // 2] * 2),
        helper.make_node("Flatten", ["means"], ["vector"]),
    ]
    graph = helper.make_graph(
        nodes,
        "recogniser",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", 12])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def test_identity_of_the_same_face_is_one(reference: Path, tmp_path: Path) -> None:
    networks = load_networks({"arcface": face_recogniser(tmp_path / "face.onnx")})
    assert judged(reference, reference, networks).values["csim"] == pytest.approx(1, abs=1e-5)


def test_faces_are_aligned_for_the_recogniser(tmp_path: Path) -> None:
    """A face that is moved and rotated gives the embedding of the face whose points are those of the template."""
    net = ArcFace(face_recogniser(tmp_path / "face.onnx"))
    y, x = np.mgrid[:112, :112]
    home = np.stack([x * 2, y * 2, 255 - x - y], axis=2).astype(np.uint8)
    turn = cv2.getRotationMatrix2D((56, 56), 25, 1.4)
    turn[:, 2] += 64
    away = cv2.warpAffine(home, turn, (240, 240), borderMode=cv2.BORDER_REPLICATE)
    five = ArcFace._TEMPLATE @ turn[:, :2].T + turn[:, 2]
    assert net(home, ArcFace._TEMPLATE) @ net(away, five) > 0.999


def test_errors_name_the_wrong_weights(tmp_path: Path) -> None:
    path = tmp_path / "wrong.onnx"
    path.write_bytes(b"nothing of use")
    with pytest.raises(CheckpointError, match=r"wrong\.onnx"):
        load_networks({"arcface": path})
    with pytest.raises(CheckpointError, match="no such file"):
        load_networks({"arcface": tmp_path / "gone"})


def test_a_recogniser_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="112"):
        ArcFace(face_recogniser(tmp_path / "large.onnx", 224))


def test_results_find_their_references_by_name(tmp_path: Path) -> None:
    for folder, names in {"refs": ("may.mp4", "may_2.mp4", "jim.mp4"), "out": ("may_2_out.mp4", "may.mp4")}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    cases, missing = find_cases({"x": tmp_path / "out"}, tmp_path / "refs", None)
    assert {(case.result.name, case.reference.name) for case in cases} == {
        ("may_2_out.mp4", "may_2.mp4"),
        ("may.mp4", "may.mp4"),
    }
    assert missing == ["x: no result for jim.mp4"]
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "zoe.mp4").touch()
    with pytest.raises(ConfigError, match="named alike"):
        find_cases({"x": tmp_path / "alien"}, tmp_path / "refs", None)


@pytest.fixture(scope="module")
def compared(
    person: tuple[Frames, NDArray[np.float32]], reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two systems on two clips, by the command line."""
    frames, sound = person
    root = tmp_path_factory.mktemp("compared")
    for name in ("may", "jim"):
        write(root / "refs" / f"{name}.mkv", frames, sound)
        write(root / "good" / f"{name}.mkv", frames, sound)
    write(root / "blurred" / "may_out.mkv", np.stack([cv2.GaussianBlur(f, (0, 0), 3) for f in frames]), sound)
    (root / "blurred" / "jim.mp4").write_bytes(b"not a video")
    arguments = ["evaluate", f"good={root / 'good'}", f"blurred={root / 'blurred'}", "--references", str(root / "refs")]
    arguments += ["--syncnet", "drawn", "--published", "-o", str(root / "out"), "--quiet", "--workers", "1"]
    assert main(arguments) == 0
    return root / "out"


def test_systems_are_compared_in_one_table(compared: Path) -> None:
    found = json.loads((compared / "evaluation.json").read_text())
    good, blurred = (found["systems"][name]["metrics"] for name in ("good", "blurred"))
    assert good["ssim"]["mean"] == pytest.approx(1)
    assert blurred["ssim"]["mean"] < 0.95
    assert good["ssim"]["ci95"] is not None
    assert blurred["ssim"]["ci95"] is None  # of one clip
    assert set(found["left_out"]) == {"lpips", "csim", "fid", "fvd"}
    assert any("jim.mp4" in text for text in found["missing"])
    heading, table = rows(found, paper=True)
    assert "FID ↓" in heading
    assert [row[0] for row in table[:3]] == ["good", "blurred", "Lip Forcing 14B (published)"]


def test_the_page_holds_everything(compared: Path) -> None:
    text = (compared / "index.html").read_text()
    assert text.count("data:image/jpeg") == 8 * (2 + 3)  # two references, three results
    assert text.count("<svg") == 2
    assert "give --lpips FILE" in text
    assert not re.search("(src|href|url)[=(]['\"]?https?:", text)  # nothing is fetched


def test_wrong_use_is_an_error_with_a_fix(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = str(compared.parent / "refs")
    assert main(["evaluate", refs, "--references", refs, "--syncnet", "gone.model"]) == CheckpointError.exit_code
    assert "gone.model" in capsys.readouterr().err
    assert main(["evaluate", f"a={refs}", f"a={refs}", "--references", refs]) == 2
    assert main(["evaluate", "gone", "--references", refs]) == ConfigError.exit_code
    assert len(list(VideoReader(compared.parent / "good" / "may.mkv"))) == LENGTH
