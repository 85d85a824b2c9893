"""Graphs that ask for memory out of proportion are refused before they run; sizes are those that ONNX Runtime finds."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from lipstream import _native
from lipstream.bundle import MANIFEST, Bundle
from lipstream.bundle.golden import first_chunks, probe_chunks, probe_inputs
from lipstream.bundle.memory import attended_lengths, check_memory
from lipstream.bundle.onnx_graph import read_graph
from lipstream.bundle.onnx_header import read_header
from lipstream.bundle.sizes import RULES, largest
from lipstream.bundle.validate import OPERATORS
from lipstream.errors import BundleCorruptError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = dict[str, NDArray[Any]]
HUGE = 3_000_000_000
OPSET = [helper.make_opsetid("", 23)]


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


def replaced(bundle: Path, name: str, data: bytes) -> None:
    """Put a graph in the place of one of `bundle`, with a manifest that matches."""
    (bundle / name).write_bytes(data)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def extended(bundle: Path, nodes: list[Any], constants: Arrays, graph: str = "audio_encoder") -> onnx.ModelProto:
    """The graph of `bundle` with nodes that add zero times what they compute, "x", to its output."""
    model = onnx.load(str(bundle / f"{graph}.onnx"), load_external_data=False)
    (output,) = (value.name for value in model.graph.output if value.name in ("features", "velocity"))
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
        node.input[:] = ["before" if name == output else name for name in node.input]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    model.graph.node.extend(nodes)
    model.graph.node.append(helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0))
    model.graph.node.append(helper.make_node("Mul", ["most", "nothing"], ["zero_"]))
    model.graph.node.append(helper.make_node("Add", ["before", "zero_"], [output]))
    return model


def refuse(bundle: Path, model: onnx.ModelProto, match: str, graph: str = "audio_encoder") -> None:
    replaced(bundle, f"{graph}.onnx", model.SerializeToString())
    for verify in (True, False):
        with pytest.raises(BundleCorruptError, match=match):
            Bundle.load(bundle, verify=verify)


def node(operator: str, inputs: str, output: str = "x", **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(" ") if inputs else [], [output], **attributes)


def i64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


ONE = np.ones(1, np.float32)
SQUARE = np.ones((1, 1, 4, 4), np.float32)
LONG = np.ones((60_000, 1), np.float32)
DEMANDS: dict[str, tuple[list[Any], Arrays]] = {
    "Expand": ([node("Expand", "c n")], {"c": ONE, "n": i64(HUGE)}),
    "Expand in many axes": ([node("Expand", "c n")], {"c": ONE, "n": i64(2000, 2000, 2000)}),
    "Tile": ([node("Tile", "c n")], {"c": ONE, "n": i64(HUGE)}),
    "Tile of Tiles": (
        [node("Tile", "samples n", "a"), node("Tile", "a n", "b"), node("Tile", "b n")],
        {"n": i64(1000)},
    ),
    "Pad": ([node("Pad", "c n")], {"c": ONE, "n": i64(0, HUGE)}),
    "Pad of an axis": ([node("Pad", "c n value a")], {"c": SQUARE, "n": i64(0, HUGE), "value": ONE[0], "a": i64(-1)}),
    "Range": (
        [node("Range", "a b c", "r"), node("Cast", "r", to=TensorProto.FLOAT)],
        {"a": i64(0)[0], "b": i64(HUGE)[0], "c": i64(1)[0]},
    ),
    "Range of real numbers": (
        [node("Range", "a b c")],
        {"a": np.float32(0), "b": np.float32(1), "c": np.float32(1e-10)},
    ),
    "Resize by scales": ([node("Resize", "c  s")], {"c": SQUARE, "s": np.array([1, 1, 1e5, 1e5], np.float32)}),
    "Resize to sizes": ([node("Resize", "c   s")], {"c": SQUARE, "s": i64(1, 1, 60_000, 60_000)}),
    "Concat that doubles": (
        [node("Concat", " ".join(["samples" if i == 0 else f"d{i}"] * 2), f"d{i + 1}", axis=0) for i in range(24)]
        + [node("Identity", "d24")],
        {},
    ),
    "Add of a row and a column": ([node("Transpose", "c", "t"), node("Add", "c t")], {"c": LONG}),
    "product of a column and a row": ([node("Transpose", "c", "t"), node("MatMul", "c t")], {"c": LONG}),
    "Gemm": ([node("Gemm", "c c", transB=1)], {"c": LONG}),
    "Einsum": ([node("Einsum", "c c", equation="ai,bi->ab")], {"c": LONG}),
    "Einsum by way of a large one": ([node("Einsum", "c c", equation="ai,bi->i")], {"c": LONG}),
    "Gather": (
        [node("Expand", "samples m", "a"), node("Gather", "a i", axis=0)],
        {"m": i64(1000, 1), "i": np.zeros(30_000, np.int64)},
    ),
    "GatherND": (
        [node("Expand", "samples m", "a"), node("GatherND", "a i")],
        {"m": i64(1000, 1), "i": np.zeros((30_000, 1), np.int64)},
    ),
    "Conv that pads": ([node("Conv", "c w", pads=[30_000] * 4)], {"c": SQUARE, "w": np.ones((1, 1, 1, 1), np.float32)}),
    "ConvTranspose": (
        [node("ConvTranspose", "c w", strides=[20_000] * 2)],
        {"c": SQUARE, "w": np.ones((1, 1, 1, 1), np.float32)},
    ),
    "scores of Attention": (
        [node("Attention", "c c c")],
        {"c": np.ones((1, 1, 30_000, 1), np.float32)},
    ),
    "many constants": (
        [node("Expand", "c n", f"e{i}") for i in range(40)]
        + [node("ReduceMax", f"e{i}", f"m{i}", keepdims=0) for i in range(40)]
        + [node("Max", " ".join(f"m{i}" for i in range(40)))],
        {"c": ONE, "n": i64(10_000_000)},
    ),
    "a size by way of Shape": (
        [node("Shape", "samples", "s"), node("Mul", "s s", "t"), node("Mul", "t n", "u"), node("Expand", "c u")],
        {"c": ONE, "n": i64(1000)},
    ),
}


@pytest.mark.parametrize("what", DEMANDS)
def test_graphs_that_ask_for_too_much(copy: Path, what: str) -> None:
    refuse(copy, extended(copy, *DEMANDS[what]), r"audio_encoder: it needs [\d.e+]+ GiB when it computes \w+, by ")


@pytest.mark.parametrize("times", [2, 1 << 20])
def test_only_the_demand_is_refused(copy: Path, times: int) -> None:
    """The same nodes in proportion load and run."""
    model = extended(
        copy, [node("Expand", "c n", "e"), node("Pad", "e p")], {"c": ONE, "n": i64(times), "p": i64(1, 2)}
    )
    replaced(copy, "audio_encoder.onnx", model.SerializeToString())
    bundle = Bundle.load(copy)
    session = ort.InferenceSession(str(copy / "audio_encoder.onnx"))
    session.run(None, probe_inputs(bundle.manifest, bundle.constants, "audio_encoder", {}))


def test_functions_that_do_not_end_or_hide_an_operator(copy: Path, tiny: Path) -> None:
    call = helper.make_node("KVRingWrite", ["a"], ["b"], domain="lipstream")
    opsets = [*OPSET, helper.make_opsetid("lipstream", 1)]
    model = extended(copy, [helper.make_node("KVRingWrite", ["samples"], ["x"], domain="lipstream")], {})
    model.functions.append(helper.make_function("lipstream", "KVRingWrite", ["a"], ["b"], [call], opsets))
    refuse(copy, model, "nested too deeply")
    model = extended(tiny, [node("Neg", "samples")], {})
    model.functions.append(helper.make_function("", "Neg", ["a"], ["b"], [node("Abs", "a", "b")], OPSET))
    refuse(copy, model, "a function Neg")


def test_a_function_that_expands(copy: Path) -> None:
    """With the name of the one that a student has."""
    tile = [helper.make_node("Tile", ["a", "n"], ["b"]), helper.make_node("ReduceMax", ["b"], ["c"], keepdims=0)]
    model = extended(
        copy,
        [helper.make_node("KVRingWrite", ["samples", "n"], ["x"], domain="lipstream")],
        {"n": i64(10_000_000)},
    )
    model.functions.append(helper.make_function("lipstream", "KVRingWrite", ["a", "n"], ["c"], tile, OPSET))
    refuse(copy, model, "needs .* GiB when it computes x, by lipstream:KVRingWrite")


def test_a_size_that_only_the_first_chunk_has(copy: Path) -> None:
    """Huge while fewer frames are attended than the window has."""
    nodes = [
        node("Shape", "k.0", "attended", end=1),
        node("Sub", "window attended", "missing"),
        node("Mul", "missing n", "more"),
        node("Add", "more one", "size"),
        node("Expand", "c size"),
    ]
    window = Bundle.load(copy).manifest.geometry.window
    constants = {"window": i64(window), "n": i64(HUGE), "one": i64(1), "c": ONE}
    model = extended(copy, nodes, constants, "denoiser")
    refuse(copy, model, "denoiser: it needs", "denoiser")
    graph = read_graph(copy / "denoiser.onnx")
    (k,) = ([d.dim_value for d in x.type.tensor_type.shape.dim] for x in model.graph.input if x.name == "k.0")
    assert k[0] == 0  # a variable size
    assert len(graph.nodes) == len(model.graph.node)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Cast", "samples", "n", to=TensorProto.INT64), node("Expand", "c n")],
        [node("Cast", "samples", "n", to=TensorProto.INT64), node("Reshape", "samples n")],
        [
            node("DynamicQuantizeLinear", "samples", "n"),
            node("Cast", "n", "m", to=TensorProto.INT64),
            node("Tile", "c m"),
        ],
    ],
)
def test_a_size_that_depends_on_the_sound(copy: Path, nodes: list[Any]) -> None:
    refuse(copy, extended(copy, nodes, {"c": ONE}), "depends on what is computed")


def test_sparse_and_hollow_weights(copy: Path, tiny: Path) -> None:
    model = extended(copy, [node("Identity", "w")], {})
    values, places = numpy_helper.from_array(ONE, "w"), numpy_helper.from_array(i64(0), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [HUGE]))
    refuse(copy, model, "sparse weights")
    model = extended(tiny, [node("Identity", "w")], {})
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[HUGE], raw_data=b"1234"))
    refuse(copy, model, "weights of 3000")


@pytest.mark.parametrize("seed", range(8))
def test_any_change_to_a_graph_is_read_or_refused(tiny: Path, tmp_path: Path, seed: int) -> None:
    """The rules of operators raise nothing else for nodes that are not valid."""
    rng = np.random.default_rng(seed)
    bundle = Bundle.load(tiny, verify=False)
    name = ["audio_encoder", "video_encoder", "video_decoder", "denoiser"][seed % 4]
    whole = bundle.file(f"{name}.onnx").read_bytes()
    header, file = read_header(bundle.file(f"{name}.onnx")), tmp_path / "changed.onnx"
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 30_000), rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        file.write_bytes(data)
        try:
            check_memory(bundle.manifest, bundle.constants, name, header, file)
        except ValueError:
            refused += 1
    assert refused


def test_invalid_nodes_are_refused(copy: Path, tiny: Path) -> None:
    """What Python raises other errors for, too."""
    for nodes in (
        [node("Concat", "", axis=0)],
        [node("Transpose", "samples", perm=[0.0])],
        [node("Gemm", "samples samples")],
        [node("MaxPool", "samples", kernel_shape=[1])],
        [node("Conv", "one one", strides=[0])],
        [node("Tile", "samples large", f"{'x' if i == 5 else i}") for i in range(6)],
        [node("Reshape", "one many")],
    ):
        constants = {"one": ONE, "large": i64(2**62), "many": np.ones(3000, np.int64)}
        refuse(copy, extended(tiny, nodes, constants), "audio_encoder: ")


def test_another_opset(copy: Path) -> None:
    """Operators of other versions take their sizes from other inputs."""
    for version in (1, 10, 99):
        model = extended(copy, [node("Identity", "samples")], {})
        model.opset_import[0].version = version
        refuse(copy, model, f"has opset {version}")
        shutil.copy(Bundle.find("tiny") / "audio_encoder.onnx", copy)


def test_an_attribute_with_two_values(copy: Path) -> None:
    """A reader of protocol buffers merges the two tensors; one that takes the last reads another shape."""
    model = extended(copy, [node("Constant", "", value=numpy_helper.from_array(ONE))], {})
    (attribute,) = next(n for n in model.graph.node if n.output[0] == "x").attribute
    attribute.ClearField("t")
    head = attribute.SerializeToString()
    twice = head + b"".join(
        onnx.AttributeProto(t=numpy_helper.from_array(np.ones(n, np.float32))).SerializeToString() for n in (1, 2)
    )
    file = copy / "audio_encoder.onnx"
    mark = onnx.AttributeProto(name="value", s=b"x" * (len(twice) - 9 - len(head)), type=4)
    mark.s = b"x" * (len(mark.s) + len(twice) - len(mark.SerializeToString()))
    attribute.CopyFrom(mark)
    data = model.SerializeToString()
    assert data.count(mark.SerializeToString()) == 1
    replaced(copy, file.name, data.replace(mark.SerializeToString(), twice))
    onnx.load(str(file), load_external_data=False)  # it is a valid message
    with pytest.raises(BundleCorruptError, match="two values"):
        Bundle.load(copy)


def floats(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(shape, np.float32)


U8, SCALE, ZERO = np.ones((3, 4), np.uint8), np.float32(0.5), np.uint8(1)
CASES: list[tuple[str, list[NDArray[Any] | None], dict[str, Any]]] = [
    *(
        (name, [floats(2, 3)], {})
        for name in ("Neg", "Sqrt", "Reciprocal", "Abs", "Exp", "Log", "Cos", "Sin", "Relu", "LeakyRelu", "Gelu")
    ),
    *(
        (name, [floats(2, 3)], {})
        for name in ("Erf", "Tanh", "Sigmoid", "HardSigmoid", "Softmax", "Round", "Floor", "Identity", "Clip")
    ),
    ("Not", [np.ones((2, 3), bool)], {}),
    *(
        (name, [floats(2, 1, 3), floats(4, 1)], {})
        for name in ("Add", "Sub", "Mul", "Div", "Pow", "Equal", "Less", "LessOrEqual")
    ),
    *((name, [floats(2, 1, 3), floats(4, 1)], {}) for name in ("Greater", "GreaterOrEqual", "Min", "Max")),
    *((name, [np.ones((2, 1), bool), np.ones(3, bool)], {}) for name in ("And", "Or")),
    ("Where", [np.ones((2, 1), bool), floats(3), floats(4, 1, 1)], {}),
    *(
        ("MatMul", [floats(*a), floats(*b)], {})
        for a, b in [((5, 1, 2, 3), (4, 3, 6)), ((3,), (2, 3, 4)), ((2, 3), (3,))]
    ),
    ("MatMul", [floats(3), floats(3)], {}),
    ("MatMulInteger", [U8, np.ones((4, 2), np.uint8)], {}),
    ("QLinearMatMul", [U8, SCALE, ZERO, np.ones((4, 2), np.uint8), SCALE, ZERO, SCALE, ZERO], {}),
    *(
        ("Gemm", [floats(*a), floats(*b)], o)
        for a, b, o in [((2, 3), (3, 4), {}), ((3, 2), (4, 3), {"transA": 1, "transB": 1})]
    ),
    ("Conv", [floats(1, 4, 9, 10), floats(6, 2, 3, 2)], {"group": 2, "pads": [1, 0, 2, 3], "strides": [2, 3]}),
    ("Conv", [floats(1, 4, 9), floats(6, 4, 3)], {"dilations": [2], "auto_pad": "VALID"}),
    ("Conv", [floats(1, 4, 9), floats(6, 4, 3)], {"strides": [2], "auto_pad": "SAME_UPPER"}),
    (
        "ConvTranspose",
        [floats(1, 4, 5, 6), floats(4, 3, 3, 2)],
        {"group": 2, "strides": [3, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 0]},
    ),
    ("MaxPool", [floats(1, 2, 9, 9)], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [floats(1, 2, 9, 9)], {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1]}),
    ("Attention", [floats(1, 4, 3, 8), floats(1, 2, 5, 8), floats(1, 2, 5, 6)], {}),
    ("Attention", [floats(1, 3, 32), floats(1, 5, 16), floats(1, 5, 12)], {"q_num_heads": 4, "kv_num_heads": 2}),
    *(("Einsum", [floats(2, 3), floats(3, 4)], {"equation": e}) for e in ("ij,jk->ik", "ij,jk->kij", "ij, jk -> ")),
    ("RotaryEmbedding", [floats(1, 2, 3, 4), floats(1, 3, 2), floats(1, 3, 2)], {}),
    ("LayerNormalization", [floats(2, 3, 4), floats(4)], {}),
    ("RMSNormalization", [floats(2, 3, 4), floats(4)], {}),
    ("GroupNormalization", [floats(2, 4, 3), floats(4), floats(4)], {"num_groups": 2}),
    ("InstanceNormalization", [floats(2, 4, 3), floats(4), floats(4)], {}),
    ("LpNormalization", [floats(2, 4, 3)], {}),
    *(("ReduceMean", [floats(2, 3, 4), a], o) for a, o in [(i64(1), {}), (i64(-1, 0), {"keepdims": 0})]),
    *(("ReduceSum", [floats(2, 3)], o) for o in ({}, {"noop_with_empty_axes": 1}, {"keepdims": 0})),
    *((name, [floats(2, 3), i64(1)], {}) for name in ("ReduceMax", "ReduceMin", "ReduceL2")),
    *(("Reshape", [floats(2, 3, 4), shape], {}) for shape in (i64(0, -1), i64(4, 6), i64(-1), i64(2, 0, -1, 1))),
    *(("Transpose", [floats(2, 3, 4)], o) for o in ({}, {"perm": [1, 2, 0]})),
    ("Concat", [floats(2, 3), floats(2, 5)], {"axis": -1}),
    *(("Split", [floats(2, 7), i64(3, 4)], {"axis": 1}), ("Split", [floats(7, 2)], {"num_outputs": 2})),
    *(
        ("Slice", [floats(5, 9), i64(*start), i64(*end), i64(*axes), i64(*step)], {})
        for start, end, axes, step in [
            ((1,), (-1,), (0,), (1,)),
            ((-100, 2), (100, 100), (1, 0), (3, 1)),
            ((-1, 7), (-100, 0), (0, -1), (-1, -3)),
            ((4,), (1,), (0,), (1,)),
            ((100,), (-(2**63),), (1,), (-2,)),
        ]
    ),
    *(("Squeeze", [floats(1, 3, 1)], {}), ("Squeeze", [floats(1, 3, 1), i64(-1)], {})),
    ("Unsqueeze", [floats(3, 4), i64(0, -1)], {}),
    *(("Flatten", [floats(2, 3, 4)], o) for o in ({}, {"axis": -1}, {"axis": 0}, {"axis": 3})),
    *(("Shape", [floats(2, 3, 4)], o) for o in ({}, {"start": 1}, {"start": -2, "end": -1}, {"end": 9})),
    ("Gather", [floats(2, 3, 4), np.zeros((5, 6), np.int64)], {"axis": 1}),
    *(
        ("GatherND", [floats(2, 3, 4), np.zeros(s, np.int64)], o)
        for s, o in [((5, 2), {}), ((2, 1), {"batch_dims": 1})]
    ),
    ("GatherElements", [floats(2, 3), np.zeros((1, 3), np.int64)], {}),
    ("ScatterND", [floats(4, 3), i64(1, 2)[:, None], floats(2, 3)], {}),
    *(("Pad", [floats(2, 3), i64(1, 2, 3, 4)], {}), ("Pad", [floats(2, 3), i64(1, -2), np.float32(0), i64(-1)], {})),
    ("Tile", [floats(2, 3), i64(2, 3)], {}),
    *(("Expand", [floats(3, 1), shape], {}) for shape in (i64(2, 1, 4), i64(1), i64(3, 5))),
    *(("Range", [i64(a)[0], i64(b)[0], i64(c)[0]], {}) for a, b, c in [(1, 10, 3), (5, -5, -3), (5, 1, 1)]),
    ("Range", [np.float32(0), np.float32(1), np.float32(0.3)], {}),
    ("Resize", [floats(1, 1, 4, 5), None, np.array([1, 1, 1.5, 2.3], np.float32)], {}),
    ("Resize", [floats(1, 1, 4, 5), None, None, i64(1, 1, 7, 3)], {}),
    ("Resize", [floats(1, 1, 4, 5), None, None, i64(7, 3)], {"axes": [2, 3]}),
    ("DepthToSpace", [floats(1, 8, 2, 3)], {"blocksize": 2}),
    ("Cast", [floats(2, 3)], {"to": TensorProto.INT64}),
    ("CastLike", [floats(2, 3), i64(1)], {}),
    *(("Constant", [], o) for o in ({"value_ints": [1, 2]}, {"value_int": 1}, {"value_float": 1.0})),
    *(("Constant", [], o) for o in ({"value_floats": [1.0]}, {"value": numpy_helper.from_array(floats(2, 3))})),
    ("QuantizeLinear", [floats(2, 3), SCALE, ZERO], {}),
    ("DequantizeLinear", [U8, SCALE, ZERO], {}),
    ("DynamicQuantizeLinear", [floats(2, 3)], {}),
]
SEVERAL = {"DynamicQuantizeLinear": 3, "Split": 2, "MaxPool": 2}
NOT_RUN = {"Swish"}  # not in this ONNX Runtime's opset


def test_every_operator_has_a_rule_and_a_case() -> None:
    assert OPERATORS - {"lipstream:KVRingWrite"} == RULES.keys()
    assert {name for name, _, _ in CASES} == RULES.keys() - NOT_RUN


@pytest.mark.parametrize(("operator", "arrays", "attributes"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_sizes_are_those_of_onnx_runtime(
    tmp_path: Path, operator: str, arrays: list[NDArray[Any] | None], attributes: dict[str, Any]
) -> None:
    """Of one operator. Integers are constants, as in the graphs of students; so are scales."""
    names = ["" if x is None else f"i{n}" for n, x in enumerate(arrays)]
    outputs = [f"o{n}" for n in range(SEVERAL.get(operator, 1))]
    given = {name: x for name, x in zip(names, arrays, strict=True) if x is not None}
    fixed = {name: x for name, x in given.items() if np.asarray(x).dtype == np.int64 or np.ndim(x) == 0 or name == "i2"}
    fed = {name: np.asarray(x) for name, x in given.items() if name not in fixed}
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, **attributes)],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in fed.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(x), name) for name, x in fixed.items()],
    )
    path = tmp_path / "one.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=OPSET, ir_version=10).SerializeToString())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    found = ort.InferenceSession(str(path), options).run(None, fed)
    shapes = {name: np.shape(value) for name, value in zip(outputs, found, strict=True)}
    sizes = {name: x.shape for name, x in fed.items()}
    largest(read_graph(path), sizes, shapes)
    with pytest.raises(ValueError, match="the output o0 is"):
        largest(read_graph(path), sizes, shapes | {"o0": (*shapes["o0"], 1)})


@pytest.mark.parametrize("name", ["audio_encoder", "video_encoder", "video_decoder", "denoiser"])
def test_all_tensors_of_a_student_have_the_sizes_of_onnx_runtime(tiny: Path, name: str) -> None:
    bundle = Bundle.load(tiny)
    path = bundle.file(f"{name}.onnx")
    model = onnx.load(str(path))
    known = {value.name for value in model.graph.output}
    computed = [output for n in model.graph.node for output in n.output if output and output not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in computed)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    memories = {x.name: x.shape for x in session.get_inputs() if x.name.startswith("memory.")}
    names = {x.name for x in session.get_inputs()}
    for chunk in probe_chunks(bundle.manifest, name):
        inputs = probe_inputs(bundle.manifest, bundle.constants, name, memories, chunk)
        inputs = {key: value for key, value in inputs.items() if key in names}
        outputs = [x.name for x in session.get_outputs()]
        shapes = {key: x.shape for key, x in zip(outputs, session.run(None, inputs), strict=True)}
        assert len(shapes) > len(model.graph.node) - 5
        largest(read_graph(path), {key: x.shape for key, x in inputs.items()}, shapes)


@pytest.mark.parametrize(
    ("chunk_frames", "sink", "blocks"), [(3, 1, 2), (3, 0, 2), (3, 3, 2), (1, 0, 1), (3, 4, 1), (2, 7, 3), (5, 2, 4)]
)
def test_attended_lengths_are_those_of_the_ring(tiny: Path, chunk_frames: int, sink: int, blocks: int) -> None:
    window = sink + chunk_frames * blocks
    geometry = replace(Bundle.load(tiny).manifest.geometry, chunk_frames=chunk_frames, sink=sink, window=window)
    ring = {_native.ring_position(chunk, window, sink, chunk_frames).valid for chunk in range(40)}
    assert {*attended_lengths(geometry)} == ring >= {*first_chunks(geometry)}


def test_what_is_held_at_once(tmp_path: Path) -> None:
    """Counted by hand: two of three tensors of a chain at once, and what depends on no input for good."""

    def needed(nodes: list[Any], **constants: NDArray[Any]) -> int:
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in "xy")
        weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "chain", [x], [y], weights)
        (tmp_path / "chain.onnx").write_bytes(helper.make_model(graph, opset_imports=OPSET).SerializeToString())
        return largest(read_graph(tmp_path / "chain.onnx"), {"x": (1000,)}, {"y": (1000,)})[0]

    chain = [node("Expand", "x n", "a"), node("Neg", "a", "b"), node("Neg", "b", "c")]
    ends = [node("ReduceMax", "c axes", "y", keepdims=0)]
    sizes = {"n": i64(1000, 1000), "axes": i64(0)}
    assert needed(chain + ends, **sizes) == 2 * 4_000_000
    assert needed([node("Expand", "one n", "a"), *chain[1:], *ends], one=ONE, **sizes) == 3 * 4_000_000 + 4_000
