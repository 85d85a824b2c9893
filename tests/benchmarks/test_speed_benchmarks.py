"""The benchmarks of speed: the alternatives compute the same. No time is asserted."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from lipstream import samples
from lipstream.cli import main as lipstream
from lipstream.errors import ConfigError, ParityError
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import STUDENTS, StudentConfig, WanVAEConfig
from lipstream_models.parts import StudentParts
from toys import CONFIG, WAV2VEC_SIZES, toy_student, toy_text
from transformers import Wav2Vec2Config, Wav2Vec2Model

from benchmarks import __main__ as suite
from benchmarks import (
    dit_latency,
    drift,
    faces,
    flatness,
    kernels,
    lookahead,
    precision,
    random_release,
    render_docs,
    ring,
    stream,
    throughput,
    timeline,
    whole_job,
)
from benchmarks.upstream import UpstreamSteps

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("window", "sink"), [(7, 1), (8, 2), (10, 1), (6, 0)])
def test_recomputing_the_window_gives_what_the_ring_gives(window: int, sink: int) -> None:
    student = toy_student(replace(CONFIG, window=window, sink=sink))
    with torch.inference_mode():
        for chunk in range((window - sink) // 3):
            stream = ring.Stream(student, toy_text(), chunk)
            assert all(ring.relative_error(stream.recompute(step), stream.ring(step)) < 1e-5 for step in (0, 1))
        # Later chunks depend on frames outside the window, so recomputing the window alone must differ.
        late = ring.Stream(student, toy_text(), (window - sink) // 3 + 3)
        assert 1e-5 < ring.relative_error(late.recompute(0), late.ring(0)) < 0.5


def test_whole_sessions_are_measured(tmp_path: Path) -> None:
    result = tmp_path / "stream.json"
    args = ["--bundle", "tiny", "--whole", str(samples.FACE), "--streams", "2", "--chunks", "2", "--json", str(result)]
    assert stream.run(stream.build_parser().parse_args(args))
    (row,) = json.loads(result.read_text())["results"]["whole"]
    assert row["streams"] == len(row["first_frame_ms"]) == 2
    assert all(0 < first < 60_000 for first in row["first_frame_ms"])
    assert {"reference", "audio", "denoise", "decode", "composite"} <= {*row["stage_ms"]}
    assert row["stage_ms"]["composite"] > 0


def test_a_ring_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ring.Stream.ring
    monkeypatch.setattr(ring.Stream, "ring", lambda stream, step: right(stream, step) * np.float32(1.01))
    with pytest.raises(ParityError):
        ring.measure(toy_student(), toy_text(), steady=False, repeats=1)


def run(module: Any, tmp_path: Path, *options: str) -> dict[str, Any]:
    """Run a benchmark in this process; its results."""
    path = tmp_path / "result.json"
    module.run(module.build_parser().parse_args([*options, "--threads", "1", "--json", str(path)]))
    results: dict[str, Any] = json.loads(path.read_text())["results"]
    return results


def test_ring(bundle: Path, tmp_path: Path) -> None:
    found = run(ring, tmp_path, "--quick", "--bundle", str(bundle), "--windows", "10", "--repeats", "2")
    (case,) = found.values()
    assert (case["exact"]["latent_frames"], case["steady"]["latent_frames"]) == (9, 10)
    assert case["exact"]["relative_difference"] < 1e-4
    assert case["exact"]["pass_ratio"]["n"] == 2


@pytest.mark.slow
def test_precision(bundle: Path, tmp_path: Path) -> None:
    """BF16 differs from float32, FP8 differs more; the exported graphs differ as much as PyTorch does."""
    rows = {row["variant"]: row for row in run(precision, tmp_path, "--bundle", str(bundle), "--quick")["rows"]}
    errors = {name: row["velocity at 0.999"] for name, row in rows.items()}
    assert 0 < errors["bf16"] < errors["bf16 throughout"]
    assert errors["bf16"] < errors["fp8, all layers"] < 0.2
    assert errors["random, fp8, ONNX Runtime"] == pytest.approx(errors["random, fp8, all layers"], rel=0.5)
    assert rows["bf16"]["mouth_psnr_db"] > rows["fp8, all layers"]["mouth_psnr_db"] > 20


def test_throughput(bundle: Path, speech: Path, tmp_path: Path) -> None:
    """The sample and a clip are dubbed and transcoded, and the passes of the backends agree (else ParityError)."""
    given = ["--bundle", str(bundle), "--audio", str(speech), "--sizes", "384x320", "1280x720", "--cores", "1"]
    found = run(throughput, tmp_path, *given, "--runs", "1", "--chunks", "1")
    assert found["passes"]["relative_difference"] < 1e-4
    assert found["encoder"] == {"codec": "libx264", "preset": whole_job.PRESET, "crf": whole_job.CRF}
    assert {size: [*by_cores] for size, by_cores in found["whole_job"].items()} == {"384x320": ["1"], "1280x720": ["1"]}
    for by_cores in found["whole_job"].values():
        row = by_cores["1"]
        for job in (row, row["transcode"], row["eager"]):
            assert (job["frames"], job["fps"]["n"]) == (30, 1)
            assert job["peak_memory_mib"]["min"] > 25
        assert 0 < row["dit_share"]["median"] < 1
        assert sum(stage["median"] for stage in row["stages_seconds"].values()) <= row["seconds"]["max"]


def test_backends_that_differ_are_not_timed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lipstream.backends.onnxruntime import OnnxRuntimeSteps

    right = OnnxRuntimeSteps.denoise
    monkeypatch.setattr(OnnxRuntimeSteps, "denoise", lambda *given: right(*given) * np.float32(1.01))
    with pytest.raises(ParityError):
        throughput.passes(str(bundle), 1, 1)


def test_flatness(bundle: Path, tmp_path: Path) -> None:
    found = run(flatness, tmp_path, "--bundle", str(bundle), "--seconds", "12")
    assert found["seconds"] >= 12
    assert found["chunks"] == pytest.approx(12 / 0.48, abs=2)
    assert [row["seconds"] for row in found["table"]] == [10]


def rows(chunk_ms: float, growth: float) -> dict[str, list[float]]:
    """Ten minutes of a stream whose chunks end at `chunk_ms` from 50, and which grows by `growth` MiB."""
    n = 1250
    return {
        "at": list(0.48 * np.arange(1, n + 1)),
        "chunk_ms": list(np.linspace(50, chunk_ms, n)),
        "rss_mib": list(400 + np.linspace(0, growth, n)),
        "peak_mib": [400 + growth],
    }


@pytest.mark.parametrize(
    ("chunk_ms", "growth", "passed"), [(50, 0, True), (52, 3, True), (70, 0, False), (50, 9, False), (30, -9, True)]
)
def test_criteria_of_flatness(chunk_ms: float, growth: float, passed: bool) -> None:
    found = flatness.judge(rows(chunk_ms, growth))
    assert found["passed"] == passed
    assert found["slowdown"] == pytest.approx(chunk_ms / 50, rel=0.1)
    assert found["rss_growth_mib"] == pytest.approx(0.9 * growth, rel=0.1)
    assert [row["seconds"] for row in found["table"]] == [10, 30, 60, 120, 300, 600]


def test_dit_latency_on_a_cpu(tmp_path: Path) -> None:
    found = run(dit_latency, tmp_path, "--size", "tiny", "--device", "cpu", "--dtype", "float32", "--repeats", "2")
    assert {*found["structures"]} == {"ring", "upstream"}
    for structure in found["structures"].values():
        names = {name for name in structure if name.endswith("_ms")}
        assert names == {"denoise_0_ms", "denoise_1_ms", "context_ms", "chunk_ms"}
        assert structure["video_fps"] == pytest.approx(12_000 / structure["chunk_ms"]["median"], rel=1e-4)
    assert found["ceilings"]["fp32_tflops"] > 0


@pytest.mark.parametrize(("window", "sink"), [(7, 1), (8, 2), (6, 0)])
def test_the_released_structure_computes_what_the_ring_computes(window: int, sink: int) -> None:
    student, rng = toy_student(replace(CONFIG, window=window, sink=sink)), np.random.default_rng(0)
    config = student.config
    backend = TorchBackend(StudentParts(config, student, toy_text()))
    ours, theirs = backend.open_steps(), UpstreamSteps(backend)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    for chunk in range(6):
        latents = [normal(config.latent_channels, config.chunk_frames, *config.latent_size) for _ in range(3)]
        condition = normal(config.in_channels - config.latent_channels, config.chunk_frames, *config.latent_size)
        audio = normal(config.temporal * config.chunk_frames, config.audio_dim)
        _, wanted = throughput.one_chunk(ours, chunk, latents, condition, audio)
        _, found = throughput.one_chunk(theirs, chunk, latents, condition, audio)
        for a, b in zip(found, wanted, strict=True):
            assert ring.relative_error(a, b) < 1e-5


def test_kernels(bundle: Path, tmp_path: Path) -> None:
    found = run(kernels, tmp_path, "--bundle", str(bundle), "--repeats", "2")
    assert {*found["graphs"]} == {"audio_encoder", "video_encoder", "denoiser", "video_decoder"}
    for graph in found["graphs"].values():
        assert 0 < sum(x["ms"] for x in graph["operators"].values()) < 1.2 * graph["ms"]
    assert all(kernel["gb_s"] > 0 for kernel in found["kernels"].values())


def test_a_simulated_stream_loses_no_sample(tmp_path: Path) -> None:
    found = run(drift, tmp_path, "--hours", "0.05")
    assert found["exact"]
    assert found["frames"] == 0.05 * 3600 * 25
    assert abs(found["hours"][-1]["drift_samples"]) < 1764


@pytest.mark.parametrize(
    ("change", "passed"),
    [({}, True), ({"frames": 99}, False), ({"out_of_order": 1}, False), ({"samples_given": 90}, False)],
)
def test_criteria_of_drift(change: dict[str, Any], passed: bool) -> None:
    hours = [{"hours": h, "drift_samples": 0, "chunk_ms": 1.0, "rss_mib": 100.0} for h in (1, 2)]
    found = {"frames": 100, "frames_wanted": 100, "samples_pushed": 100, "samples_given": 100, "out_of_order": 0}
    assert drift.judge(found | {"hours": hours} | change)["passed"] == passed
    hours[1]["chunk_ms"] = 1.2
    assert not drift.judge(found | {"hours": hours})["passed"]


def test_prepared_streams(bundle: Path, tmp_path: Path) -> None:
    found = run(stream, tmp_path, "--bundle", str(bundle), "--prepared", "--chunks", "2")
    assert found["streams_that_fit"] in (0, 1)


def test_the_suite_lists_and_runs(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.start([]) == 0
    listed = capsys.readouterr().out
    for name in suite.BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        module.build_parser()
        assert re.search(rf"^{name} ", listed, re.MULTILINE)
    assert suite.start(["all", "--quick", "--only", "drift", "stream", "--out", str(tmp_path)]) in (0, 1)
    assert json.loads((tmp_path / "stream.json").read_text())["options"]["chunks"] == 2
    assert re.search(r"^stream +ok ", capsys.readouterr().out, re.MULTILINE)


def test_the_pages_agree_with_the_results() -> None:
    blocks: set[str] = set()
    for name in render_docs.PAGES:
        text = (ROOT / "docs" / name).read_text()
        blocks |= {*re.findall(r"<!-- results (\w+) -->", text)}
        assert render_docs.filled(text, ROOT / "benchmarks" / "results") == text
    assert blocks == {*render_docs.BLOCKS}


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_dit_latency_without_a_gpu_is_an_error() -> None:
    with pytest.raises(ConfigError):
        dit_latency.run(dit_latency.build_parser().parse_args([]))


def test_stream(bundle: Path, tmp_path: Path) -> None:
    sizes = ["--streams", "1", "2", "--chunks", "2"]
    found = run(stream, tmp_path, "--bundle", str(bundle), "--against", str(bundle), *sizes)
    assert found["relative_error"] == 0
    assert [row["streams"] for row in found["rows"]] == [1, 2]
    for row in found["rows"]:
        assert 0 < row["chunk_ms"]["p50"] <= row["chunk_ms"]["p95"] <= row["chunk_ms"]["p99"]


def test_streams_that_give_other_pictures_fail(bundle: Path) -> None:
    args = stream.build_parser().parse_args(["--bundle", str(bundle), "--against", "tiny", "--chunks", "1"])
    with pytest.raises(ValueError, match="shape"):  # another model altogether
        stream.run(args)
    with pytest.raises(ConfigError, match="no timeline"):
        stream.record(stream.LipSyncEngine.load(bundle), None)


def test_a_timeline_is_drawn_to_scale() -> None:
    spans = [("encode", "encode", 10.0, 20.0), ("decode", "pictures", 30.0, 50.0)]
    drawn = ElementTree.fromstring(timeline.draw(spans, "<lanes>"))
    bars = list(drawn.iter("{http://www.w3.org/2000/svg}rect"))[1:]
    (first, second) = [(float(bar.get("x", 0)), float(bar.get("width", 0))) for bar in bars]
    assert first[0] == timeline.LEFT
    assert second[1] == pytest.approx(2 * first[1], abs=0.2)
    assert second[0] - first[0] == pytest.approx(2 * first[1], abs=0.2)


def test_faces(tmp_path: Path) -> None:
    """Both sizes of the face are timed in all three steps; the whole is their sum."""
    found = run(faces, tmp_path, "--quick")
    for case in found.values():
        steps = [case[name]["min"] for name in ("track", "crop", "composite")]
        assert 0 < sum(steps) <= case["all"]["max"]
        assert case["all"]["n"] == 30
    assert {*found} == {"0.7", "1"}


def test_lookahead(tmp_path: Path) -> None:
    """A window that covers a whole short clip gives its features; shorter ones differ."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    encoder = Wav2Vec2Config(**sizes, conv_dim=[16] * 7)
    Wav2Vec2Model(encoder).save_pretrained(tmp_path / "wav2vec")
    options = ["--quick", "--wav2vec", str(tmp_path / "wav2vec"), "--lookback", "2", "--lookahead", "2"]
    rows = run(lookahead, tmp_path, *options)["rows"]
    errors = {(row["lookback_s"], row["lookahead_s"]): row["all"] for row in rows}
    assert errors[2.0, 0.0] > errors[2.0, 0.32] > 0.01
    assert errors[6.4, 2.0] < 1e-4


@pytest.mark.slow
def test_random_files_of_a_release_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = {"audio_dim": 64, "audio_hidden": 8}
    text = {"text_dim": 8, "text_len": 4}
    toy = StudentConfig(dim=24, ffn_dim=40, num_heads=2, num_layers=2, latent_size=(4, 4), **text, **audio)
    monkeypatch.setitem(STUDENTS, "1.3b", toy)
    files = random_release.write_release(
        "1.3b", tmp_path / "files", wan=WanVAEConfig(dim=4), wav2vec=Wav2Vec2Config(**WAV2VEC_SIZES)
    )
    assert lipstream(["export", *files, "--check"]) == 0
    assert lipstream(["export", *files, "--no-parity", "-o", str(tmp_path / "bundle")]) == 0
    found = run(stream, tmp_path, "--bundle", str(tmp_path / "bundle"), "--chunks", "1")
    assert found["rows"][0]["fps_of_all"] > 0
