"""BF16 and FP8: against ml_dtypes' E4M3, ONNX Runtime's quantise-dequantise pairs, and the float32 model."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import Exported
from hypothesis import given
from hypothesis import strategies as st
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.bundle import Bundle
from lipstream.bundle.golden import REFERENCE, UNREAD, Reference, key, probe_chunks, probe_inputs
from lipstream.cli import main
from lipstream.errors import BackendError
from lipstream_export.bundle import export_bundle
from lipstream_export.parity import parity_report, require_parity
from lipstream_export.precision import (
    FP8Linear,
    Passes,
    Sensitivity,
    measure_sensitivity,
    quantise,
    to_bfloat16,
    widen,
    widen_bundle,
    widen_module,
)
from lipstream_export.precision.calibration import largest_inputs
from lipstream_export.precision.fp8 import LARGEST, linear_layers, scale_of, to_e4m3
from lipstream_export.precision.products import products_in_float32
from lipstream_export.precision.sensitivity import velocity_error
from lipstream_export.reference import reference
from lipstream_export.torch_backend import TorchBackend
from lipstream_models.layers import Linear
from lipstream_models.parts import StudentParts
from torch import nn


@pytest.fixture(scope="module")
def passes(complete: Exported) -> Passes:
    """Four chunks of noise through the float32 model."""
    rng = np.random.default_rng(0)
    g = complete.bundle.manifest.geometry
    found = Passes()
    for chunk in range(4):
        condition = rng.standard_normal((3 * g.latent_channels + 1, g.chunk_frames, *g.latent_size), np.float32)
        audio = rng.standard_normal((g.video_frames, complete.config.audio_dim), np.float32)
        latents = rng.standard_normal((3, g.latent_channels, g.chunk_frames, *g.latent_size), np.float32)
        found.calls += [("begin_chunk", (chunk,))]
        found.calls += [("denoise", (latents[step], condition, audio, step)) for step in range(2)]
        found.calls += [("context", (latents[2], condition, audio))]
    found.velocities = found.play(TorchBackend(complete.parts).open_steps())
    return found


def error_of(parts: StudentParts, passes: Passes) -> float:
    stream = TorchBackend(parts).open_steps()
    return velocity_error(passes.play(stream), passes.velocities)


def test_e4m3_is_that_of_ml_dtypes() -> None:
    x = np.concatenate([np.random.default_rng(0).standard_normal(10_000) * 100, [0, 448, 449, 1e6, -1e6, 2**-9]])
    found = to_e4m3(torch.from_numpy(x.astype(np.float32)), torch.tensor(1.0)).float().numpy()
    expected = np.clip(x, -LARGEST, LARGEST).astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_an_fp8_layer_computes_what_onnx_runtime_does_with_its_pairs() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(FP8Linear(Linear(48, 32), amax=3.0)).eval()
    x = torch.randn(5, 48)
    program = torch.onnx.export(layer, (x,), dynamo=True, opset_version=23, verbose=False)
    assert program is not None
    model = program.model_proto
    widen(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, widen_module(layer)(x).numpy(), rtol=1e-4, atol=1e-5)


def test_an_fp8_product_has_an_error_of_a_few_percent() -> None:
    torch.manual_seed(0)
    linear, x = Linear(256, 64), torch.randn(100, 256)
    found, expected = FP8Linear(linear, float(x.abs().max()))(x).float(), linear(x)
    error = float((found - expected).norm() / expected.norm())
    assert 0.01 < error < 0.05  # 3 bits of mantissa: uniform in 1/16 at most, on both sides


def test_a_scale_is_never_zero() -> None:
    assert scale_of(torch.zeros(3)).min() > 0


def test_bf16_rounds_products_and_leaves_norms_and_modulation(complete: Exported, passes: Passes) -> None:
    parts = to_bfloat16(complete.parts)
    assert parts.student
    assert parts.student.blocks[0].modulation.dtype == torch.float32
    assert parts.student.blocks[0].self_attn.norm_q.weight.dtype == torch.float32
    assert parts.student.blocks[0].ffn[0].weight.dtype == torch.bfloat16
    assert complete.parts.student.blocks[0].ffn[0].weight.dtype == torch.float32  # type: ignore[union-attr]
    error = error_of(parts, passes)
    assert 1e-4 < error < 1e-2
    wholly = replace(
        complete.parts,
        student=copy.deepcopy(complete.parts.student).to(torch.bfloat16),  # type: ignore[union-attr]
        shared={k: v.bfloat16() for k, v in complete.parts.constants().items() if not k.startswith("mask.")},
    )
    assert error < 0.8 * error_of(wholly, passes)


def test_sensitivity_predicts_the_error_of_fp8(complete: Exported, passes: Passes) -> None:
    parts = to_bfloat16(complete.parts)
    assert parts.student
    largest = largest_inputs(parts, passes)
    assert {*largest} == {*linear_layers(parts.student)}
    assert all(
        cut <= full
        for cut, full in zip(largest_inputs(parts, passes, "percentile").values(), largest.values(), strict=True)
    )
    sensitivity = measure_sensitivity(parts, passes, largest, budget=math.inf)
    assert sensitivity.kept == []
    shorter = passes.first(3)
    for name in ("blocks.0.ffn.2", "blocks.1.self_attn.k", "blocks.2.self_attn.v", "blocks.3.cross_attn.o"):
        alone = replace(parts, student=quantise(parts.student, {name: largest[name]}))
        with products_in_float32(alone.student), products_in_float32(parts.student):
            error = velocity_error(
                shorter.play(TorchBackend(alone).open_steps()), shorter.play(TorchBackend(parts).open_steps())
            )
        assert sensitivity.layers[name] == error
    quantised = replace(parts, student=quantise(parts.student, sensitivity.quantised))
    expected = passes.play(TorchBackend(parts).open_steps())
    found = passes.play(TorchBackend(quantised).open_steps())
    assert velocity_error(found, expected) == pytest.approx(sensitivity.predicted(), rel=0.6)
    assert passes.play(TorchBackend(parts).open_steps())[0].tobytes() == expected[0].tobytes()


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=30), st.floats(0, 2))
def test_the_fewest_layers_stay_in_bf16(errors: list[float], budget: float) -> None:
    layers = {f"blocks.{i}": error for i, error in enumerate(sorted(errors, reverse=True))}
    s = Sensitivity(layers, dict.fromkeys(layers, 1.0), budget)
    assert s.predicted() <= budget
    assert not s.kept or math.hypot(s.predicted(), layers[s.kept[-1]]) > budget
    assert {*s.kept} | {*s.quantised} == {*layers}


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def rounded(
    request: pytest.FixtureRequest, complete: Exported, passes: Passes, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A bundle in lower precision."""
    parts = to_bfloat16(complete.parts)
    if request.param == "fp8":
        assert parts.student
        parts = replace(parts, student=quantise(parts.student, largest_inputs(parts, passes)))
    reference_ = reference(complete.parts, parts)
    path = tmp_path_factory.mktemp(request.param) / "bundle"
    files = {REFERENCE: reference_.dump()}
    bundle = export_bundle(parts, path, precision=request.param, files=files)
    return Exported(parts, bundle)


def test_the_graphs_compute_what_pytorch_computes(rounded: Exported, tmp_path: Path) -> None:
    wide = widen_bundle(rounded.bundle, tmp_path / "wide")
    parts = replace(
        rounded.parts,
        student=widen_module(copy.deepcopy(rounded.parts.student)),  # type: ignore[arg-type]
        taehv=widen_module(copy.deepcopy(rounded.parts.taehv)),  # type: ignore[arg-type]
    )
    report = parity_report(parts, wide, rounded.bundle.manifest.precision)
    require_parity(report)


def test_onnx_runtime_rejects_the_bundle_with_a_fix(rounded: Exported) -> None:
    with pytest.raises(BackendError, match="computes in fp32") as error:
        OnnxRuntimeBackend(rounded.bundle)
    assert "lipstream build" in error.value.fix


def test_the_reference_is_what_the_float32_graphs_give(complete: Exported, rounded: Exported) -> None:
    """Every graph of the float32 bundle, run by ONNX Runtime on the probe's inputs."""
    stored = Reference.load(rounded.bundle.file(REFERENCE))
    for name in ("audio_encoder", "video_encoder", "video_decoder", "denoiser"):
        session = onnxruntime.InferenceSession(str(complete.bundle.file(f"{name}.onnx")))
        shapes = {x.name: x.shape for x in session.get_inputs()}
        memories = {x: shape for x, shape in shapes.items() if x.startswith("memory.")}
        names = [x.name for x in session.get_outputs()]
        for chunk in probe_chunks(complete.bundle.manifest, name):
            inputs = probe_inputs(complete.bundle.manifest, complete.bundle.constants, name, memories, chunk)
            assert {*inputs} == {*shapes}
            errors = stored.compare(name, chunk, dict(zip(names, session.run(names, inputs), strict=True)))
            assert max(errors.values()) < 1e-5
    assert {graph.partition("/")[0] for graph in stored.outputs} == {
        "audio_encoder",
        "video_encoder",
        "video_decoder",
        "denoiser",
    }
    most = {"bf16": 0.05, "fp8": 0.3}[rounded.bundle.manifest.precision]  # random weights
    for chunk in range(3):
        assert 1e-4 < stored.errors[key("denoiser", "velocity", chunk)] < most
    assert stored.errors[key("audio_encoder", "features", 0)] == 0


def test_the_reference_has_every_length_and_both_blocks(complete: Exported) -> None:
    """Of the released window, 7 with a sink of 1."""
    manifest, constants = complete.bundle.manifest, complete.bundle.constants
    assert (manifest.geometry.window, manifest.geometry.sink) == (7, 1)
    chunks = probe_chunks(manifest, "denoiser")
    probes = [probe_inputs(manifest, constants, "denoiser", {}, chunk) for chunk in chunks]
    assert [(len(x["k.0"]), int(x["slot"][0])) for x in probes] == [(3, 0), (6, 3), (7, 0)]
    for x in probes:
        own = range(x["slot"][0], x["slot"][0] + 3)
        for name in ("k.0", "v.3"):
            assert [bool(np.all(frame == UNREAD)) for frame in x[name]] == [i in own for i in range(len(x[name]))]
    assert probe_chunks(manifest, "video_decoder") == [0]


@pytest.mark.slow
def test_export_of_a_shipped_bundle_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", "tiny", "-o", str(out), "--precision", "fp8", "--chunks", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    bundle = Bundle.load(out)
    assert bundle.manifest.precision == "fp8"
    assert result["parity"]["passed"]
    report = json.loads(bundle.file("precision.json").read_text())
    assert report == result["fp8"]
    assert report["predicted"] <= report["budget"]
    types = {x.data_type for x in onnx.load(out / "denoiser.onnx", load_external_data=False).graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in types


def test_a_float32_bundle_exports_to_itself(complete: Exported, tmp_path: Path) -> None:
    assert main(["export", str(complete.bundle.path), "-o", str(tmp_path / "again"), "--json"]) == 0
    assert Bundle.load(tmp_path / "again").manifest == complete.bundle.manifest


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--precision", "fp8", "--chunks", "0"], "0 chunks"),
        (["--precision", "fp8", "--budget", "nan"], "budget of nan"),
        (["--precision", "fp8", "--chunks", "1000"], "is enough for"),
        (["--precision", "fp8", "--calibrate", "nothing.mp4", "nothing.wav"], "nothing.mp4"),
    ],
)
def test_calibration_errors_have_a_reason(
    arguments: list[str], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "tiny", "-o", str(tmp_path / "out"), *arguments]) not in (0, 70)
    assert found in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
