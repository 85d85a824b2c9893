"""Every graph of a released bundle, small: NVIDIA's builder takes it, and lowering its attention changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_stand_ins import open_session
from lipstream.bundle import Bundle
from lipstream.bundle.golden import relative_error
from lipstream.errors import LipStreamInternalError
from lipstream_engines.lower_attention import LARGEST_HEAD, lower_attention
from lipstream_engines.lower_ring import load_graph
from onnx import TensorProto, helper
from rig import environment
from small_release import small_release

BUILD = Path(__file__).with_name("full_size.py")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_release(tmp_path_factory.mktemp("small") / "wan", "wan", "bf16")


@pytest.fixture(scope="module")
def taehv(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_release(tmp_path_factory.mktemp("small") / "taehv", "taehv", "fp8")


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto, inputs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(None, {x.name: inputs[x.name] for x in session.get_inputs()})
    return found


def build(bundle: Bundle, ring: str) -> None:
    command = [sys.executable, BUILD, "build", bundle.path, ring]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_wan_vae_and_wav2vec_build_in_bf16(needs_rig: None, wan: Bundle) -> None:
    assert wan.manifest.graphs == {"audio_encoder", "video_encoder", "video_decoder"}
    build(wan, "native")


def test_taehv_wav2vec_and_the_student_build_in_fp8(needs_rig: None, taehv: Bundle) -> None:
    assert {"audio_encoder", "video_encoder", "video_decoder", "denoiser"} <= taehv.manifest.graphs
    build(taehv, "native")


@pytest.mark.parametrize("graph", ["video_encoder", "video_decoder"])
def test_lowered_attention_computes_the_same(wan: Bundle, graph: str) -> None:
    model = load_graph(wan.path / f"{graph}.onnx")
    before = model.SerializeToString()
    lowered = lower_attention(model)
    assert model.SerializeToString() == before
    assert (kinds(model).count("Attention"), kinds(lowered).count("Attention")) == (1, 0)
    results = []
    for each in (model, lowered):
        session = open_session(each, wan)
        rng = np.random.default_rng(0)
        inputs = {
            x.name: rng.random([d.dim_value for d in x.type.tensor_type.shape.dim], np.float32)
            for x in each.graph.input
        }
        results.append(session.run(None, inputs))
    for expected, found in zip(*results, strict=True):
        assert np.abs(expected).max() > 0
        assert relative_error(found, expected) < 1e-5


def test_the_denoiser_keeps_its_fused_attention(taehv: Bundle) -> None:
    model = load_graph(taehv.path / "denoiser.onnx")
    assert "Attention" in kinds(model)
    assert kinds(lower_attention(model)) == kinds(model)


def attention(size: int, dtype: int = TensorProto.FLOAT, **attributes: Any) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, dtype, [1, 2, 5, size]) for name in "qkv"]
    values.append(helper.make_tensor_value_info("mask", dtype, [1, 1, 1, 5]))
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], **attributes)
    out = helper.make_tensor_value_info("y", dtype, [1, 2, 5, size])
    graph = helper.make_graph([node], "attention", values, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("scale", [{}, {"scale": 0.5}])
def test_mask_and_scale(scale: dict[str, float]) -> None:
    """Against the formula in float64."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2, 5, 8))
    mask = np.array([0, 0, -1e9, 0, -1.0]).reshape(1, 1, 1, 5)
    logits = q @ k.swapaxes(2, 3) * scale.get("scale", 8**-0.5) + mask
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    model = lower_attention(attention(8, **scale))
    assert "Attention" not in kinds(model)
    (found,) = run(
        model, {n: x.astype(np.float32) for n, x in zip(("q", "k", "v", "mask"), (q, k, v, mask), strict=True)}
    )
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize(
    ("size", "dtype", "kept"),
    [
        (LARGEST_HEAD, TensorProto.BFLOAT16, True),
        (LARGEST_HEAD + 8, TensorProto.BFLOAT16, False),
        (64, TensorProto.FLOAT, False),
    ],
)
def test_what_has_a_fused_kernel_is_kept(size: int, dtype: int, kept: bool) -> None:
    model = lower_attention(attention(size, dtype))
    assert ("Attention" in kinds(model)) == kept
    onnx.checker.check_model(model, full_check=True)


def test_an_attribute_that_is_not_lowered_is_refused() -> None:
    with pytest.raises(LipStreamInternalError, match="is_causal"):
        lower_attention(attention(64, is_causal=1))
