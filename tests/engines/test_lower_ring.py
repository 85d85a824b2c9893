"""The natively lowered graphs compute what the bundle's do: TensorRT's operators are given bodies in standard ONNX."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import onnx
import pytest
from engine_stand_ins import open_session
from lipstream.bundle import Bundle
from lipstream.bundle.golden import probe_chunks, probe_inputs, relative_error
from lipstream.bundle.plans import RINGS
from lipstream_engines.lower_ring import Attends, Lowering, load_graph, lower_ring, phases
from lipstream_engines.verify import from_native, to_native
from onnx import TensorProto, helper
from trt_bodies import with_bodies


def run(model: onnx.ModelProto, bundle: Bundle, inputs: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    session = open_session(model, bundle)
    wanted = {x.name for x in session.get_inputs()}
    assert wanted <= {*inputs}
    names = [x.name for x in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: inputs[name] for name in wanted}), strict=True))


@pytest.mark.parametrize(
    "precision", ["bf16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp8", "fp8-attention"))]
)
def test_native_and_function_lowering_compute_the_same(tiny: dict[str, Bundle], precision: str) -> None:
    bundle = tiny[precision]
    g, path = bundle.manifest.geometry, bundle.path / "denoiser.onnx"
    native = lower_ring(load_graph(path), g, "native")
    kinds = [node.op_type for node in native.graph.node]
    assert kinds.count("TRT_KVCacheUpdate") == 2 * g.num_layers
    own = "TRT_QuantizedAttention" if precision == "fp8-attention" else "TRT_Attention"
    assert kinds.count(own) == kinds.count("Attention") == g.num_layers  # the latter: the prompt's
    assert kinds.count("RotaryEmbedding") == 2 * g.num_layers
    assert "KVRingWrite" not in kinds
    shapes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in native.graph.input}
    assert shapes["k.0"] == [1, g.num_heads, g.window * g.tokens, g.head_dim]

    inputs = probe_inputs(bundle.manifest, bundle.constants, "denoiser", {})
    found = from_native(run(with_bodies(native), bundle, to_native(inputs, g)), g)
    expected = run(lower_ring(load_graph(path), g, "function"), bundle, inputs)
    assert {*found} == {*expected}
    # E4M3 may round a last bit's difference to the other neighbour; with its attention, softmax is rounded, too.
    tolerance = {"bf16": 1e-4, "fp8": 1e-2, "fp8-attention": 3e-2}[precision]
    for name in expected:
        assert relative_error(found[name], expected[name]) < tolerance


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp8", marks=pytest.mark.slow)])
def test_plugin_and_native_lowering_compute_the_same_bits(tiny: dict[str, Bundle], precision: str) -> None:
    bundle = tiny[precision]
    g, path = bundle.manifest.geometry, bundle.path / "denoiser.onnx"
    found = {}
    for lowering in ("native", "plugin"):
        model = lower_ring(load_graph(path), g, lowering)  # type: ignore[arg-type]
        writes = [node for node in model.graph.node if node.op_type == "KVRingWrite"]
        assert len(writes) == (g.num_layers if lowering == "plugin" else 0)
        for node in writes:  # what TensorRT's parser reads to find the plugin
            named = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            assert named == {"eps": pytest.approx(1e-6), "plugin_version": b"2", "plugin_namespace": b"lipstream"}
            assert not node.input[2].startswith("native.")  # K as the linear layer gives it
        inputs = to_native(probe_inputs(bundle.manifest, bundle.constants, "denoiser", {}), g)
        found[lowering] = run(with_bodies(model), bundle, inputs)
    for name, expected in found["native"].items():
        np.testing.assert_array_equal(found["plugin"][name], expected)


@pytest.mark.parametrize("ring", ["native", "plugin"])
def test_a_mask_limits_the_attention_as_a_length_does(tiny: dict[str, Bundle], ring: Lowering) -> None:
    bundle = tiny["bf16"]
    g = bundle.manifest.geometry
    for chunk in probe_chunks(bundle.manifest, "denoiser"):
        inputs = to_native(probe_inputs(bundle.manifest, bundle.constants, "denoiser", {}, chunk), g)
        found = {}
        for attends in get_args(Attends):
            model = lower_ring(load_graph(bundle.path / "denoiser.onnx"), g, ring, attends)
            (attention,) = {(*node.input[3:],) for node in model.graph.node if node.op_type == "TRT_Attention"}
            assert attention == (("", "", "native.length") if attends == "length" else ("native.mask", "", ""))
            found[attends] = run(with_bodies(model), bundle, inputs)
        for name, expected in found["length"].items():
            assert relative_error(found["mask"][name], expected) < 1e-5


def test_only_the_attended_frames_count(tiny: dict[str, Bundle]) -> None:
    """Ring slots beyond the attended frames have no effect."""
    bundle = tiny["bf16"]
    g, path = bundle.manifest.geometry, bundle.path / "denoiser.onnx"
    inputs = to_native(probe_inputs(bundle.manifest, bundle.constants, "denoiser", {}), g)
    inputs["attended"] = np.array([g.chunk_frames], np.int64)
    velocities = []
    for value in (0.0, 100.0):
        for kind in "kv":
            for i in range(g.num_layers):
                inputs[f"{kind}.{i}"][:, :, g.chunk_frames * g.tokens :] = value
        native = lower_ring(load_graph(path), g, "native")
        velocities.append(run(with_bodies(native), bundle, inputs)["velocity"])
    np.testing.assert_array_equal(*velocities)


def test_the_function_is_gone_and_node_names_are_unique(tiny: dict[str, Bundle]) -> None:
    bundle = tiny["bf16"]
    for lowering in RINGS:
        model = lower_ring(load_graph(bundle.path / "denoiser.onnx"), bundle.manifest.geometry, lowering)  # type: ignore[arg-type]
        assert not model.functions
        outputs = [name for node in model.graph.node for name in node.output]
        assert len({*outputs}) == len(outputs)
        read = {name for node in model.graph.node for name in node.input}
        assert {x.name for x in model.graph.input} <= read
        assert all(x.type.tensor_type.elem_type != TensorProto.UNDEFINED for x in model.graph.input)


def test_a_graph_without_the_ring_stays_as_it_is(tiny: dict[str, Bundle]) -> None:
    model = load_graph(tiny["bf16"].path / "video_decoder.onnx")
    assert lower_ring(model, tiny["bf16"].manifest.geometry, "native") is model


def test_the_phases_of_the_released_window(tiny: dict[str, Bundle]) -> None:
    assert list(phases(tiny["bf16"].manifest.geometry)) == [3, 6, 7]
