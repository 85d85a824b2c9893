"""3-D convolutions as 2-D ones: the same sums, and NVIDIA's builder takes them with the weights where they are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_stand_ins import open_session
from lipstream.bundle import Bundle
from lipstream.bundle.golden import relative_error
from lipstream.errors import ConfigError, LipStreamInternalError
from lipstream_engines.build import parse
from lipstream_engines.lower_conv import lower_conv
from lipstream_engines.lower_ring import load_graph
from lipstream_engines.recipe import Recipe, load_recipe
from onnx import TensorProto, helper, numpy_helper
from rig import environment
from small_release import small_release

BUILD = Path(__file__).with_name("full_size.py")
RECIPE = Recipe("small", "", "bf16")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_release(tmp_path_factory.mktemp("small") / "wan", "wan", "bf16")


def ranks(model: onnx.ModelProto) -> list[int]:
    """Dimensions of the results of convolutions."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {x.name: len(x.type.tensor_type.shape.dim) for x in [*graph.value_info, *graph.output]}
    return [known[node.output[0]] for node in graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize("graph", ["video_encoder", "video_decoder"])
def test_the_wan_vae_computes_the_same(wan: Bundle, graph: str) -> None:
    """Two calls, so that the memory of the first is read: pictures and memories of both."""
    model = load_graph(wan.path / f"{graph}.onnx")
    before = model.SerializeToString()
    lowered = lower_conv(model)
    assert model.SerializeToString() == before
    assert lowered.graph.initializer == model.graph.initializer  # no weight is copied
    assert (5 in ranks(model), {*ranks(lowered)}) == (True, {4})
    assert len(ranks(lowered)) == len(ranks(model))
    results = []
    for each in (model, lowered):
        session = open_session(each, wan)
        rng, found = np.random.default_rng(0), []
        shapes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in each.graph.input}
        memory = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("memory.")}
        for _ in range(2):
            given = {name: rng.random(shape, np.float32) for name, shape in shapes.items() if name not in memory}
            outputs = dict(zip([x.name for x in each.graph.output], session.run(None, given | memory), strict=True))
            found += list(outputs.values())
            memory = {name: outputs[name.replace("memory", "memory_out")] for name in memory}
        results.append(found)
    for expected, found_one in zip(*results, strict=True):
        assert np.abs(expected).max() > 0
        assert relative_error(found_one, expected) < 1e-5


def convolution(
    x: tuple[int, ...], weight: tuple[int, ...], *, bias: bool = True, **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(1)
    given = {"x": rng.standard_normal(x, np.float32)}
    constants = {"w": rng.standard_normal(weight, np.float32)}
    if bias:
        constants["b"] = rng.standard_normal(weight[0], np.float32)
    node = helper.make_node("Conv", ["x", *constants], ["y"], name="conv", **attributes)
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(x))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), given


@pytest.mark.parametrize(
    ("x", "weight", "attributes"),
    [
        ((2, 3, 7, 6, 5), (4, 3, 3, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
        ((1, 3, 7, 6, 5), (4, 3, 3, 1, 1), {"strides": [2, 1, 1]}),
        ((2, 3, 8, 6, 5), (4, 3, 3, 3, 2), {"strides": [3, 2, 1], "pads": [0, 1, 0, 0, 2, 1]}),
        ((2, 3, 7, 6, 4), (4, 3, 1, 2, 2), {"strides": [1, 2, 2]}),  # patches of the student
        ((1, 3, 7, 6, 4), (4, 3, 1, 1, 1), {"strides": [2, 1, 1]}),
        ((1, 3, 2, 6, 4), (4, 3, 2, 1, 3), {"bias": False}),
    ],
)
def test_every_stride_and_padding(x: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any]) -> None:
    model, given = convolution(x, weight, **attributes)
    lowered = lower_conv(model)
    onnx.checker.check_model(lowered, full_check=True)
    assert ranks(lowered) == [4]
    cpu = ["CPUExecutionProvider"]
    sessions = [onnxruntime.InferenceSession(x.SerializeToString(), providers=cpu) for x in (model, lowered)]
    (expected,), (found,) = (session.run(None, given) for session in sessions)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-6


def test_other_convolutions_are_kept() -> None:
    for x, weight in (((1, 3, 7), (4, 3, 3)), ((1, 3, 7, 7), (4, 3, 3, 3))):
        model, _ = convolution(x, weight)
        assert lower_conv(model) == model


@pytest.mark.parametrize("attributes", [{"pads": [1, 0, 0, 1, 0, 0]}, {"dilations": [2, 1, 1]}, {"group": 2}])
def test_what_is_not_lowered_is_refused(attributes: dict[str, Any]) -> None:
    model, _ = convolution((1, 4, 7, 6, 5), (4, 4 // attributes.get("group", 1), 3, 1, 1), **attributes)
    with pytest.raises(LipStreamInternalError, match="convolution conv"):
        lower_conv(model)


def test_the_wan_vae_builds_with_2d_convolutions(needs_rig: None, wan: Bundle) -> None:
    command = [sys.executable, BUILD, "build", wan.path, "native", "--conv3d", "2d"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_recipe_says_whether(wan: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "x"\nprecision = "bf16"\nconv3d = "2d"\n')
    recipe = load_recipe(str(path))
    monkeypatch.setattr("lipstream_engines.build.Parsed", lambda model, path, plugin: model)
    for each, wanted in ((recipe, {4}), (replace(recipe, conv3d="3d"), {4, 5}), (RECIPE, {4, 5})):
        given: Any = parse(wan, "video_decoder", each)
        assert {*ranks(onnx.load_model_from_string(given))} == wanted
    with pytest.raises(ConfigError, match="conv3d = '1d'"):
        replace(recipe, conv3d="1d")  # type: ignore[arg-type]
