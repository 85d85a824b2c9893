"""A ring in FP8: the plugin's graph holds the codes that the native graph's attention makes of its ring in every pass.

Engines run on ONNX Runtime and a simulated GPU. The bundle is a toy whose self-attention is quantised.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import doubles
import numpy as np
import pytest
from doubles import builder, kernels
from doubles.device import Device
from engine_stand_ins import AlwaysTheFirstBlock, Engine, IgnoresTheLength, OneFrameLess, WritesBeyond, session_of
from lipstream import plugin
from lipstream.backends.base import ChunkInput
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.bundle import MANIFEST, Bundle
from lipstream.bundle.golden import REFERENCE, Reference, probe_chunks, probe_inputs
from lipstream.errors import BundleCorruptError, PlanError, VerificationError
from lipstream.gpu import Driver
from lipstream_engines.attends import choose
from lipstream_engines.build import build_plans, write_plans
from lipstream_engines.cache import PlanCache
from lipstream_engines.codes import E4M3, nearest, to_codes
from lipstream_engines.lower_ring import Lowering, load_graph, lower_ring, ring_scales
from lipstream_engines.recipe import Recipe
from lipstream_engines.verify import Scales, graph_errors, to_native, verify
from lipstream_export.precision.widen import widen_bundle
from onnx import TensorProto, helper, numpy_helper
from rig import environment
from toy_sessions import TOY, export_fp8_toy, session, short


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_fp8_toy(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def scales(bundle: Bundle) -> Scales:
    found = ring_scales(load_graph(bundle.file("denoiser.onnx")), bundle.manifest.geometry, "plugin")
    assert found
    return found


@pytest.fixture(scope="module")
def plugin_session(bundle: Bundle) -> Any:
    return session_of(bundle, "denoiser", "plugin")


def test_codes_are_those_of_the_kernels_and_tell_how_far_off_a_number_was() -> None:
    from lipstream import _native

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(10_000), [0, 1e-9, 8192, -8192]]).astype(np.float32)
    scale = np.float32(0.0066)
    codes = to_codes(x, float(scale))
    np.testing.assert_array_equal(codes.view(np.uint8), _native.e4m3(x / scale))
    expected = (x * (1 + 0.01 * rng.standard_normal(x.size))).astype(np.float32)
    found = nearest(codes, float(scale), expected)
    assert np.all(np.abs(found - expected) <= np.abs(x - expected) * (1 + 1e-5))
    np.testing.assert_allclose(nearest(codes, float(scale), x), x, rtol=1e-6)
    inside = x[(np.abs(x) > 0.02) & (np.abs(x) < 1)]  # of normal numbers that are not too large
    ratio = nearest(to_codes(2 * inside, float(scale)), float(scale), inside) / inside
    assert np.all((ratio > 2 * (1 - 1 / 8)) & (ratio <= 2 * (1 + 1e-6)))
    assert np.isnan(nearest(np.array([np.nan], E4M3), 1.0, np.ones(1, np.float32)))


def test_the_lowered_graph_reads_codes(bundle: Bundle, scales: Scales) -> None:
    g = bundle.manifest.geometry
    assert scales == [
        (pytest.approx(k / 448, rel=4e-3), pytest.approx(v / 448, rel=4e-3)) for k, v in ((20, 9), (22, 10))
    ]
    graph = lower_ring(load_graph(bundle.file("denoiser.onnx")), g, "plugin").graph
    types = {x.name: x.type.tensor_type.elem_type for x in [*graph.input, *graph.output]}
    rings = {name for name in types if name.startswith(("k.", "v.", "k_out.", "v_out."))}
    assert {types[name] for name in rings} == {TensorProto.FLOAT8E4M3FN}
    assert len(rings) == 4 * g.num_layers
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if not tensor.external_data}
    maker = {name: node for node in graph.node for name in node.output}
    attentions = [node for node in graph.node if node.op_type == "TRT_QuantizedAttention"]
    writes = [node for node in graph.node if node.op_type == "KVRingWrite"]
    for layer, (write, attention) in enumerate(zip(writes, attentions, strict=True)):
        for scale, stored, attended, ring in zip(
            scales[layer], write.input[10:], attention.input[1:3], write.output, strict=True
        ):
            assert (constants[stored].dtype, constants[stored].shape, constants[stored]) == (np.float32, (), scale)
            decoded = maker[attended]
            assert (decoded.op_type, decoded.input[0]) == ("DequantizeLinear", ring)
            assert float(constants[decoded.input[1]]) == scale
            assert constants[decoded.input[2]].view(np.uint8) == 0
    # Q of each layer, and nothing else, is quantised in a pass.
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == g.num_layers


def test_a_layer_that_is_not_quantised_keeps_all_rings_in_the_type_of_the_products(bundle: Bundle) -> None:
    g = bundle.manifest.geometry
    model = load_graph(bundle.file("denoiser.onnx"))
    first = next(node for node in model.graph.node if node.op_type == "DequantizeLinear" and "k_out" not in node.name)
    quantise = next(node for node in model.graph.node if node.output[0] == first.input[0])
    passed = helper.make_node("Identity", [quantise.input[0]], [first.output[0]])
    first.CopyFrom(helper.make_node("Cast", [*passed.input], [*passed.output], to=TensorProto.BFLOAT16))
    assert ring_scales(model, g, "plugin") is None
    lowered = lower_ring(model, g, "plugin").graph
    assert {x.type.tensor_type.elem_type for x in lowered.input if x.name[:2] in ("k.", "v.")} == {TensorProto.BFLOAT16}
    assert {len(node.input) for node in lowered.node if node.op_type == "KVRingWrite"} == {10}
    kinds = [node.op_type for node in lowered.node]
    assert (kinds.count("TRT_Attention"), kinds.count("TRT_QuantizedAttention")) == (1, g.num_layers - 1)


@pytest.mark.parametrize("ring", ["native", "function"])
def test_only_the_plugin_holds_codes(bundle: Bundle, ring: Any) -> None:
    assert ring_scales(load_graph(bundle.file("denoiser.onnx")), bundle.manifest.geometry, ring) is None


def same_bits(bundle: Bundle, scales: Scales) -> None:
    """Given the codes of the native graph's ring, the plugin's leaves the codes of the ring which that leaves."""
    g = bundle.manifest.geometry
    native, own = (Engine(session_of(bundle, "denoiser", ring, fused=False)) for ring in ("native", "plugin"))
    for chunk in probe_chunks(bundle.manifest, "denoiser"):
        inputs = probe_inputs(bundle.manifest, bundle.constants, "denoiser", {}, chunk)
        expected, found = native.infer(to_native(inputs, g)), own.infer(to_native(inputs, g, scales))
        np.testing.assert_array_equal(found["velocity"], expected["velocity"])
        for layer, pair in enumerate(scales):
            for kind, scale in zip("kv", pair, strict=True):
                codes = to_codes(expected[f"{kind}_out.{layer}"], scale)
                np.testing.assert_array_equal(found[f"{kind}_out.{layer}"].view(np.uint8), codes.view(np.uint8))


def test_a_pass_computes_the_bits_of_the_native_graph(bundle: Bundle, scales: Scales) -> None:
    same_bits(bundle, scales)


class OtherScale(Engine):
    """Writes K with V's scale."""

    def taken(self, outputs: dict[str, Any]) -> dict[str, Any]:
        if "k_out.0" in outputs:
            outputs["k_out.0"] = to_codes(outputs["k_out.0"].astype(np.float32) * np.float32(20 / 9), 1.0)
        return outputs


class CodesBeyond(WritesBeyond):
    def taken(self, outputs: dict[str, Any]) -> dict[str, Any]:
        outputs["v_out.0"][0, 0, -1, 0] = 416
        return outputs


@pytest.mark.parametrize(
    ("engine", "off"),
    [
        (Engine, set()),
        (IgnoresTheLength, {"denoiser/velocity@0", "denoiser/velocity@1"}),
        (OneFrameLess, {f"denoiser/velocity@{chunk}" for chunk in (0, 1, 2)}),
        (AlwaysTheFirstBlock, {"denoiser/velocity@1", "denoiser/k_out.0@1", "denoiser/v_out.0@1"}),
        (CodesBeyond, {"denoiser/v_out.0@0", "denoiser/v_out.0@1"}),
        (OtherScale, {"denoiser/k_out.0@0", "denoiser/k_out.0@1", "denoiser/k_out.0@2"}),
    ],
)
def test_engines_are_compared_as_those_with_a_wider_ring(
    bundle: Bundle, scales: Scales, plugin_session: Any, engine: type[Engine], off: set[str]
) -> None:
    reference = Reference.load(bundle.file(REFERENCE))
    errors = graph_errors(bundle, reference, "denoiser", engine(plugin_session), in_place=True, scales=scales)
    found = {*reference.off(errors)}
    assert off <= found
    assert bool(off) == bool(found)


def test_an_engine_that_ignores_the_length_is_replaced(bundle: Bundle, scales: Scales) -> None:
    def opened(plan: Path) -> Engine:
        engine = IgnoresTheLength if plan.name == "length" else Engine
        return engine(session_of(bundle, "denoiser", "plugin", plan.name))

    recipe = Recipe("test", "", "fp8", ring="plugin")
    choice = choose(bundle, recipe, Path, runs_here=True, scales=scales, open_runner=opened)
    assert (choice.attends, choice.checked) == ("mask", True)
    assert "denoiser/velocity@0" in choice.refused["length"]


# Built on a simulated builder.


@dataclass
class Machine:
    """Attributes: modules: of the backend, on a simulated GPU with a simulated builder."""

    modules: Any
    folder: Path

    def build(self, bundle: Bundle, ring: Lowering = "plugin") -> Bundle:
        recipe = Recipe("test", "", "fp8", ring=ring)
        built = build_plans(bundle, recipe, PlanCache(self.folder / "cache"), lambda *step: None)
        return write_plans(bundle, recipe, built, self.folder / ring)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    device = Device(1)
    library = tmp_path / "library.so"
    library.write_bytes(b"the plugin")
    with doubles.gpu(device) as modules:
        builder.add(sys.modules["tensorrt"])
        registry = sys.modules["tensorrt"].get_plugin_registry()
        registry.libraries[str(library)] = (plugin.NAME, plugin.VERSION, plugin.NAMESPACE)
        monkeypatch.setattr(plugin, "library", lambda: library)
        monkeypatch.setattr("lipstream_engines.build.driver", lambda: Driver("13.0", (doubles.GPU,)))
        monkeypatch.setattr("lipstream_engines.runner.polygraphy", builder.polygraphy(device).__getitem__)
        yield Machine(modules, tmp_path)


def changed(plans: Bundle, folder: Path, **changes: Any) -> Bundle:
    """A copy with other values in the manifest's section on plans."""
    folder.mkdir()
    for file in plans.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["plans"] |= changes
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.load(folder)


def test_plans_are_built_checked_and_verified(machine: Machine, bundle: Bundle, scales: Scales) -> None:
    plans = machine.build(bundle)
    assert plans.manifest.plans
    assert plans.manifest.plans.scales == [[*pair] for pair in scales]
    attention = plans.manifest.plans.graphs["denoiser"]["attention"]
    assert attention == {"attends": "length", "checked": True, "refused": {}}
    assert verify(plans)["passed"]
    with session(machine.modules.TensorRTBackend(plans).open_stream(), plans) as opened:
        assert len(short(opened).crops) == 12


def test_other_scales_than_the_engines_are_noticed(machine: Machine, bundle: Bundle, scales: Scales) -> None:
    plans = machine.build(bundle)
    stale = changed(plans, machine.folder / "stale", scales=None)
    for use in (machine.modules.TensorRTBackend, verify):
        with pytest.raises(PlanError, match="in FP8, and its manifest scales of no layers") as error:
            use(stale)
        assert f"lipstream build BUNDLE --recipe test -o {stale.path}" in error.value.fix
    short_of = changed(plans, machine.folder / "short", scales=[[*scales[0]]])
    with pytest.raises(PlanError, match="scales of 1 layers"):
        machine.modules.TensorRTBackend(short_of)
    swapped = changed(plans, machine.folder / "swapped", scales=[[v, k] for k, v in scales])
    with pytest.raises(VerificationError, match="relative error"):
        verify(swapped)
    for number, bad in enumerate(([[0.0, 1.0]], [[1.0]], [["1", 1.0]], {"0": [1.0, 1.0]}, [[float("inf"), 1.0]])):
        with pytest.raises(BundleCorruptError, match="scales"):
            changed(plans, machine.folder / f"bad{number}", scales=bad)


# Streams on a simulated GPU.


@dataclass(frozen=True)
class After:
    """A chunk's crops, and the rings after it by name, [H, window, T, D]; codes uint8."""

    crops: np.ndarray[Any, Any]
    rings: dict[str, np.ndarray[Any, Any]]


CHUNKS = 12


@pytest.fixture(scope="module")
def wide(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle's graphs in float32, with the attention's quantisation, for ONNX Runtime."""
    return widen_bundle(bundle, tmp_path_factory.mktemp("wide") / "bundle")


def random_chunks(bundle: Bundle, count: int) -> list[ChunkInput]:
    g, rng = bundle.manifest.geometry, np.random.default_rng(0)
    noises = (len(bundle.manifest.t_list) - 1, g.latent_channels, g.chunk_frames, *g.latent_size)
    return [
        ChunkInput(
            number,
            rng.integers(0, 256, (g.video_frames, *g.crop_size, 3), np.uint8),
            None,
            rng.uniform(-0.3, 0.3, bundle.manifest.audio.window(g.video_frames)).astype(np.float32),
            [*rng.standard_normal(noises, np.float32)],
            0 if number else g.video_frames - g.first_frames,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def chunks(wide: Bundle) -> list[ChunkInput]:
    return random_chunks(wide, CHUNKS)


def untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def on_onnxruntime(bundle: Bundle, chunks: list[ChunkInput]) -> list[np.ndarray[Any, Any]]:
    """Crops of each chunk, uint8."""
    stream = OnnxRuntimeBackend(bundle, threads=1).open_stream()
    return [kernels.rounded(stream.start(chunk, untimed).crops()) for chunk in chunks]


def streamed(plans: Bundle, chunks: list[ChunkInput], seed: int) -> list[After]:
    g, device, found = plans.manifest.geometry, Device(seed), []
    with doubles.gpu(device) as modules:
        stream = modules.TensorRTBackend(plans).open_stream()
        tensors = stream._resources.engines["denoiser"].tensors
        for chunk in chunks:
            crops = stream.start(chunk, untimed).crops().copy()
            device.run_all()
            rings = {}
            for name in [f"{kind}.{i}" for kind in "kv" for i in range(g.num_layers)]:
                raw = device.view(stream._workspace.memory.at[f"{name}.0"], tensors[name].bytes).copy()
                numbers = raw.view(np.float32) if tensors[name].dtype == "FLOAT" else raw
                rings[name] = numbers.reshape(g.num_heads, g.window, g.tokens, g.head_dim)
            found.append(After(crops, rings))
    assert not device.hazards
    # All layers in one launch: frame 0 becomes the sink once, and is turned in every chunk from then on.
    assert (device.counts["ring_keep"], device.counts["ring_anchor"]) == (1, len(chunks) - 2)
    return found


@pytest.fixture(scope="module")
def plans(wide: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("plans")
    return {ring: doubles.write_plans(wide, ring, folder / ring) for ring in ("native", "plugin")}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(plans: dict[str, Bundle], chunks: list[ChunkInput]) -> dict[str, list[After]]:
    return {ring: streamed(plans[ring], chunks, 0) for ring in plans}


def test_until_the_sink_moves_a_stream_has_the_bits_of_the_native_one(
    runs: dict[str, list[After]], scales: Scales
) -> None:
    for native, own in list(zip(runs["native"], runs["plugin"], strict=True))[:2]:
        np.testing.assert_array_equal(own.crops, native.crops)
        for name, codes in own.rings.items():
            scale = scales[int(name[2:])]["kv".index(name[0])]
            np.testing.assert_array_equal(codes, to_codes(native.rings[name], scale).view(np.uint8))
    assert any(np.any(own.rings["k.0"]) for own in runs["plugin"][:1])


def test_the_sink_is_as_far_off_as_two_roundings_in_every_chunk(runs: dict[str, list[After]], scales: Scales) -> None:
    """V's codes are moved as they are. K is rounded, rotated and rounded again, always from the same copy.

    E4M3 rounds a number x by at most 2^-4 |x| or, below its normal numbers, 2^-10 scale. Of a pair of numbers K with
    norm r, rotating keeps the first rounding's error: 2^-4 r, sqrt(2) 2^-10 scale. The second one adds as much of it.
    """
    for native, own in list(zip(runs["native"], runs["plugin"], strict=True))[2:]:
        for layer, (k_scale, v_scale) in enumerate(scales):
            v = own.rings[f"v.{layer}"][:, -1]
            np.testing.assert_array_equal(v, to_codes(native.rings[f"v.{layer}"][:, -1], v_scale).view(np.uint8))
            k = own.rings[f"k.{layer}"][:, -1].view(E4M3).astype(np.float32) * np.float32(k_scale)
            expected = native.rings[f"k.{layer}"][:, -1]
            pairs, wanted = (x.reshape(*x.shape[:-1], -1, 2) for x in (k, expected))
            norm = np.linalg.norm(wanted, axis=-1)
            assert norm.max() > 1
            once = norm / 16 + np.sqrt(2) * k_scale / 1024
            twice = once + (norm + once) / 16 + np.sqrt(2) * k_scale / 1024
            assert np.all(np.linalg.norm(pairs - wanted, axis=-1) <= twice)


def test_codes_do_not_depend_on_the_order_of_the_device(
    plans: dict[str, Bundle], chunks: list[ChunkInput], runs: dict[str, list[After]]
) -> None:
    for seed in range(1, 6):
        for found, expected in zip(streamed(plans["plugin"], chunks, seed), runs["plugin"], strict=True):
            np.testing.assert_array_equal(found.crops, expected.crops)
            for name, codes in expected.rings.items():
                np.testing.assert_array_equal(found.rings[name], codes)


def test_a_stream_stays_close_to_the_bundles_own_graph(
    wide: Bundle, chunks: list[ChunkInput], runs: dict[str, list[After]], scales: Scales
) -> None:
    """Only the sink's K is rounded twice. Its effect on all other K and V stays below that of rounding these once.

    That is at most 2^-4 of a normal number, 0.027 of its norm if numbers are spread evenly. Frames: those of ONNX
    Runtime on the bundle's graph, whose ring has no codes, but for rounding to eight bits.
    """
    rolling = TOY.window - TOY.sink
    for native, own in zip(runs["native"], runs["plugin"], strict=True):
        for name, codes in own.rings.items():
            expected = to_codes(native.rings[name], scales[int(name[2:])]["kv".index(name[0])])
            a, b = (x[:, :rolling].astype(np.float32) for x in (codes.view(E4M3), expected))
            assert np.linalg.norm(a - b) < 0.027 * np.linalg.norm(b)
    for after, crops in zip(runs["plugin"], on_onnxruntime(wide, chunks), strict=True):
        level = np.abs(after.crops.astype(int) - crops)
        assert (level.max() <= 1, level.mean() < 1e-3) == (True, True)


def test_memory_of_a_session(plans: dict[str, Bundle]) -> None:
    """A byte for each number of K, V and the sink's copy of K, where float32 takes four."""
    frame = TOY.num_heads * TOY.head_dim * plans["plugin"].manifest.geometry.tokens
    numbers = TOY.num_layers * (2 * TOY.window + TOY.sink) * frame
    spent = {}
    for ring, size in (("plugin", 1), ("native", 4)):
        device = Device()
        with doubles.gpu(device) as modules:
            backend = modules.TensorRTBackend(plans[ring])
            before = device.used
            stream = backend.open_stream()
            sizes = modules.ring.EngineRing.sizes(TOY, stream._resources.engines["denoiser"], True)
            spent[ring] = device.used - before
        assert sum(sizes.values()) == numbers * size
    parts = 3 * TOY.num_layers  # each begins at a multiple of 256 bytes
    assert abs(spent["native"] - spent["plugin"] - 3 * numbers) <= 256 * parts


@pytest.fixture
def shipped(tiny: dict[str, Bundle]) -> Bundle:
    """Exported before `machine` puts the simulated modules in their places, which PyTorch would look at."""
    return tiny["fp8-attention"]


@pytest.mark.slow
def test_the_shipped_bundle_with_its_own_scales(shipped: Bundle, machine: Machine, tmp_path: Path) -> None:
    """Exported, built, checked, verified, and streamed while the sink moves four times.

    Frames differ from those of the bundle's graph no more than the native engines' do: both round softmax, too.
    """
    plans = machine.build(shipped)
    assert plans.manifest.plans
    assert plans.manifest.plans.graphs["denoiser"]["attention"]["checked"]
    assert verify(plans)["passed"]
    same_bits(shipped, plans.manifest.plans.scales)
    reference = Reference.load(shipped.file(REFERENCE))
    for kind in (IgnoresTheLength, OneFrameLess):
        engine = kind(session_of(shipped, "denoiser", "plugin"))
        errors = graph_errors(shipped, reference, "denoiser", engine, in_place=True, scales=plans.manifest.plans.scales)
        assert "denoiser/velocity@0" in reference.off(errors)
    wide = widen_bundle(shipped, tmp_path / "wide")
    chunks = random_chunks(wide, 6)
    native = machine.build(shipped, "native")
    streams = [machine.modules.TensorRTBackend(bundle).open_stream() for bundle in (plans, native)]
    for chunk, expected in zip(chunks, on_onnxruntime(wide, chunks), strict=True):
        own, other = (np.abs(stream.start(chunk, untimed).crops().astype(int) - expected) for stream in streams)
        assert own.max() <= 2
        assert own.mean() < 1.25 * other.mean()


BUILD = """
import sys, tensorrt
from pathlib import Path
from lipstream_engines.recipe import Recipe
from lipstream_engines.trt import Parsed

parsed = Parsed(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]))
parsed.require("denoiser")
inputs = [parsed.network.get_input(i) for i in range(parsed.network.num_inputs)]
print(*sorted(x.dtype.name for x in inputs if x.name.startswith(("k.", "v."))))
plan, _ = parsed.build("denoiser", Recipe("test", "", "fp8", optimization_level=0), [], b"", lambda *step: True)
print(plan.nbytes)
"""


@pytest.mark.slow
def test_tensorrt_builds_attention_that_reads_codes(needs_rig: None, shipped: Bundle, tmp_path: Path) -> None:
    """Without the plugin, which TensorRT-RTX's builder has not: the rings are only read."""
    g = shipped.manifest.geometry
    model = lower_ring(load_graph(shipped.file("denoiser.onnx")), g, "plugin")
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type != "KVRingWrite"]
    written = {name: name.replace("_out", "") for x in graph.output if (name := x.name) != "velocity"}
    for node in nodes:
        node.input[:] = [written.get(name, name) for name in node.input]
    outputs = [x for x in graph.output if x.name == "velocity"]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(outputs)
    (tmp_path / "read.onnx").write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path / "read.onnx", shipped.file("denoiser.onnx")],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    types, size = done.stdout.splitlines()
    assert types.split() == ["FP8"] * 2 * g.num_layers
    assert int(size) > 1 << 20
