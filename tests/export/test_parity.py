"""ONNX Runtime against PyTorch, through the report that every export writes; and that the report can fail."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exported import Exported
from lipstream.backends.base import Array
from lipstream.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSteps
from lipstream.bundle.golden import relative_error
from lipstream.errors import ParityError
from lipstream_export import parity
from lipstream_export.parity import parity_report, require_parity
from lipstream_export.torch_backend import TorchBackend, TorchSteps
from lipstream_models import RingGeometry
from lipstream_models.parts import StudentParts

GRAPHS = {"audio_encoder", "video_encoder", "denoiser", "video_decoder"}


def test_every_graph_agrees(complete: Exported) -> None:
    report = parity_report(complete.parts, complete.bundle)
    assert report["graphs"].keys() == GRAPHS
    assert report["worst"] == max(report["graphs"].values()) < 5e-6
    assert report["passed"]
    assert report["tolerance"] == 1e-4
    assert report["versions"]["torch"] == torch.__version__
    require_parity(report)


def test_every_window_agrees(student_only: Exported) -> None:
    report = parity_report(student_only.parts, student_only.bundle)
    assert report["graphs"].keys() == {"denoiser"}
    assert report["worst"] < 5e-6


def test_the_report_covers_every_phase_of_the_window(student_only: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    begin = TorchSteps.begin_chunk

    def recorded(stream: TorchSteps, chunk: int) -> None:
        seen.append(chunk)
        begin(stream, chunk)

    monkeypatch.setattr(TorchSteps, "begin_chunk", recorded)
    parity_report(student_only.parts, student_only.bundle)
    c = student_only.config
    geometry = RingGeometry(c.window, c.sink, c.chunk_frames)
    assert sorted({geometry.at(chunk).valid for chunk in seen}) == geometry.phases
    assert max(seen) > geometry.rolling // c.chunk_frames  # the ring has wrapped


def test_another_seed_gives_other_inputs(student_only: Exported) -> None:
    parts, bundle = student_only.parts, student_only.bundle
    first, second = (parity_report(parts, bundle, seed=seed) for seed in (0, 1))
    assert first["worst"] != second["worst"]
    assert {**first, "seed": 1, "worst": 0, "graphs": 0} == {**second, "worst": 0, "graphs": 0}


def changed(parts: StudentParts, part: str, weight: str) -> StudentParts:
    """The parts with one weight of one of them a little larger."""
    module = copy.deepcopy(getattr(parts, part))
    with torch.no_grad():
        module.get_parameter(weight).mul_(1.01)
    return replace(parts, **{part: module})


@pytest.mark.parametrize(
    ("part", "weight", "graphs"),
    [
        ("student", "head.head.weight", {"denoiser"}),
        ("student", "audio_cond_projs.0.weight", {"denoiser"}),
        ("taehv", "encoder.17.bias", {"video_encoder"}),
        ("taehv", "decoder.22.bias", {"video_decoder"}),
    ],
)
def test_one_changed_weight_is_detected(complete: Exported, part: str, weight: str, graphs: set[str]) -> None:
    report = parity_report(changed(complete.parts, part, weight), complete.bundle)
    assert not report["passed"]
    assert {name for name, error in report["graphs"].items() if error > 1e-5} == graphs
    with pytest.raises(ParityError, match="relative error") as error:
        require_parity(report)
    assert any(name in str(error.value) for name in graphs)


def test_a_context_pass_without_effect_is_detected(student_only: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeSteps, "context", lambda *arguments: None)
    report = parity_report(student_only.parts, student_only.bundle)
    assert report["graphs"]["denoiser"] > 1e-4


def test_nan_is_not_parity(complete: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.full((12, 3, 32, 48), np.nan, np.float32)
    monkeypatch.setattr(OnnxRuntimeSteps, "decode", lambda stream, latent: nothing)
    report = parity_report(complete.parts, complete.bundle)
    assert not report["passed"]
    with pytest.raises(ParityError, match="video_decoder"):
        require_parity(report)


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [([3, 4], [0, 5], 10**0.5 / 5), ([0, 0], [0, 0], 0), ([3, 4], [0, 0], 5), ([1], [1], 0)],
)
def test_relative_error(found: list[float], expected: list[float], error: float) -> None:
    assert relative_error(np.array(found, np.float32), np.array(expected, np.float32)) == pytest.approx(error)


def test_pytorch_reads_back_the_exported_weights(complete: Exported) -> None:
    """The torch backend takes its weights from the graphs; they are those that were exported."""
    backend = TorchBackend(StudentParts.from_bundle(complete.bundle))
    for ours, theirs in ((backend.parts.student, complete.parts.student), (backend.parts.taehv, complete.parts.taehv)):
        assert ours is not None
        assert theirs is not None
        state = ours.state_dict()
        different = {name for name, x in theirs.state_dict().items() if not torch.equal(state[name], x)}
        # what acts through the constants alone is not in the bundle
        folded = r"time_embedding|time_projection|text_embedding|modulation|cross_attn\.(k|v|norm_k)\."
        assert [name for name in different if not re.search(folded, name)] == []
    streams: list[Any] = [backend.open_steps(), OnnxRuntimeBackend(complete.bundle).open_steps()]
    rng, size = np.random.default_rng(0), complete.config.latent_size
    for chunk in range(3):
        latent, condition = (rng.standard_normal((n, 3, *size), np.float32) for n in (4, 13))
        audio = rng.standard_normal((12, complete.config.audio_dim), np.float32)
        frames = rng.random((12, 3, 8 * size[0], 8 * size[1]), np.float32)
        found, wanted = list[Array](), list[Array]()
        for stream, results in zip(streams, (found, wanted), strict=True):
            stream.begin_chunk(chunk)
            results += [stream.encode_video(frames), stream.decode(latent)]
            results += [stream.denoise(latent, condition, audio, step) for step in (0, 1)]
            stream.context(latent, condition, audio)
        assert all(relative_error(x, y) < 5e-6 for x, y in zip(found, wanted, strict=True))


def test_tolerance_is_for_the_precision_of_the_bundle() -> None:
    assert parity.TOLERANCE["fp32"] == 1e-4
