"""Counting operations and bytes of graphs: against PyTorch's counter, and against sums by hand for small graphs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch
from lipstream_export.bundle import graph_modules
from lipstream_export.lower import trace
from lipstream_models import STUDENTS
from onnx import TensorProto, helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toys import CONFIG, toy_parts

from benchmarks import roofline, synthetic_weights
from benchmarks.count import Cost, Kernel, count
from benchmarks.roofline import Ceiling, bound

SPARSE = replace(CONFIG, latent_size=(4, 4))


def of(graph: str) -> Cost:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]> g ' + graph)
    return count(onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model)), 1)


def test_a_product_and_the_operations_fused_after_it() -> None:
    """x [8, 16] times w [16, 4], then two elementwise nodes as one kernel; the weight is read once."""
    cost = of("(float[8,16] x, float[16,4] w) => (float[8,4] y) { a = MatMul(x, w) b = Relu(a) y = Add(b, b) }")
    product, rest = cost.kernels
    assert (product.name, product.operations, product.number) == ("MatMul", 2 * 8 * 16 * 4, "fp32")
    assert product.bytes == 4 * (8 * 16 + 16 * 4 + 8 * 4)
    assert rest == Kernel("2 fused", 0, "", 4 * 2 * 8 * 4)
    assert cost.workspace == 4 * 2 * 8 * 4  # the product's result, and what is made of it


def test_views_and_folded_constants_are_free() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 16], [0.0] * 64)
    nodes = [
        helper.make_node("Transpose", ["w"], ["v"], perm=[1, 0]),
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, [16, 8])], [value("y", 1, [8, 4])], [weight], value_info=[value("v", 1, [16, 4])]
    )
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph))
    cost = count(onnx_ir.from_proto(model), 1)
    assert [kernel.name for kernel in cost.kernels] == ["MatMul"]
    assert cost.weights == 4 * 64


def test_branches_are_fused_only_at_the_same_depth() -> None:
    """The residual bypasses a product, so it is read again after it."""
    cost = of(
        "(float[8,8] x, float[8,8] w) => (float[8,8] y) { a = Relu(x) b = MatMul(a, w) c = Neg(b) y = Add(c, a) }"
    )
    assert [kernel.name for kernel in cost.kernels] == ["Relu", "MatMul", "2 fused"]
    assert cost.kernels[-1].bytes == 4 * 3 * 64  # the product, the residual, the result


def test_operations_are_those_that_pytorch_counts() -> None:
    """PyTorch's counter runs the eager modules; convolutions, products and attention are in both."""
    for name, module in graph_modules(toy_parts(SPARSE)).items():
        if name == "audio_encoder":
            continue  # its spectrum is a convolution here and a transform there
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # it does not know the CPU's own attention
            module(*module.example())  # type: ignore[operator]
        found = count(trace(module), SPARSE.window).operations
        assert found == pytest.approx(counter.get_total_flops(), rel=0.01), name


@pytest.mark.slow
def test_a_student_with_synthetic_weights_has_the_graphs_of_a_real_one() -> None:
    config = STUDENTS["tiny"]
    bundle = onnx_ir.load(roofline.Bundle.load("tiny").file("denoiser.onnx"))
    (graph,) = (g for g in synthetic_weights.graphs("tiny", "fp32") if g.name == "denoiser")
    for frames in roofline.phases(config):
        hollow_one, real = count(graph.model, frames), count(bundle, frames)
        assert hollow_one.operations == real.operations
        assert hollow_one.weights == pytest.approx(real.weights, rel=0.01)
        assert hollow_one.state == real.state == 2 * 4 * config.num_layers * frames * config.tokens * config.dim


@pytest.mark.slow
def test_a_deep_student_is_counted_from_two_shallow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result equals that of exporting all eight layers: the same kernels, weights and state."""
    whole = roofline.student("tiny", "bf16", layers=8)
    found = roofline.student("tiny", "bf16")
    for key, wanted in whole.items():
        assert Counter(found[key].kernels) == Counter(wanted.kernels), key
        assert (found[key].weights, found[key].state) == (wanted.weights, wanted.state), key
        assert found[key].workspace == pytest.approx(wanted.workspace, rel=0.02), key


@pytest.mark.slow
def test_fp8_products_are_counted_as_fp8_with_half_the_bytes() -> None:
    def denoiser(precision: str) -> Cost:
        (graph,) = (g for g in synthetic_weights.graphs("1.3b", precision, layers=2) if g.name == "denoiser")
        return count(graph.model, 7)

    bf16, fp8 = denoiser("bf16"), denoiser("fp8")
    assert bf16.operations == fp8.operations
    share = sum(k.operations for k in fp8.kernels if k.number == "fp8") / fp8.operations
    assert 0.6 < share < 0.9  # attention stays in bfloat16
    assert fp8.weights < 0.6 * bf16.weights


def test_a_bound_is_the_longer_of_two_times() -> None:
    ceiling = Ceiling(fp32=100, bf16=200, fp8=400, bandwidth=10, memory=1000, origin="made up")
    cost = Cost(
        (Kernel("MatMul", 1000, "bf16", 10), Kernel("MatMul", 10, "fp8", 50), Kernel("Add", 0, "", 20)), 0, 0, 0
    )
    assert bound(cost, ceiling) == pytest.approx(5 + 5 + 2)
    assert bound(cost, ceiling, reach=0.5) == pytest.approx(10 + 5 + 2)


@pytest.mark.slow
def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, picture = tmp_path / "r.json", tmp_path / "r.svg"
    options = ["--sizes", "1.3b", "--precisions", "bf16", "--layers", "1", "--repeats", "1", "--threads", "1"]
    args = roofline.build_parser().parse_args([*options, "--json", str(result), "--plot", str(picture)])
    assert roofline.run(args)
    found = json.loads(result.read_text())["results"]
    assert {row["scenario"] for row in found["rows"]} == {"live", "live, TAEHV encoder", "prepared"}
    for row in found["rows"]:
        assert row["chunk_ms"] == pytest.approx(sum(row["stages_ms"].values()), rel=1e-3)
        assert row["fps_at_reach"] <= row["fps"]
    live = {row["device"]: row for row in found["rows"] if row["scenario"] == "live"}
    assert live["B200"]["fps"] > live["H200"]["fps"] >= live["H100"]["fps"] > live["L40S"]["fps"]
    assert len(found["check"]["graphs"]) == 9
    assert "| 1.3b | bf16 | live | H100 |" in capsys.readouterr().out
    assert picture.read_text().lstrip().startswith("<?xml")
