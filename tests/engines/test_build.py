"""`lipstream build` with NVIDIA's own parser and builder: what it builds, reuses, refuses, and leaves when killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from lipstream.bundle import MANIFEST, Bundle, sha256
from lipstream.bundle.plans import Plans, require_runnable
from lipstream.cli import diagnosis
from lipstream.errors import (
    BundleCorruptError,
    ConfigError,
    EngineBuildError,
    OutputError,
    PlanError,
)
from lipstream.gpu import Gpu
from lipstream_engines.build import facts, require_precision
from lipstream_engines.cache import PlanCache, key_of
from lipstream_engines.recipe import load_recipe, recipes
from lipstream_engines.runner import summarise
from onnx import helper
from rig import environment, lipstream, lipstream_json

GRAPHS = {"audio_encoder", "video_encoder", "denoiser", "video_decoder"}
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 << 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def built(needs_rig: None, tiny: dict[str, Bundle], folder: Path) -> dict[str, Any]:
    """The report of the first build of tiny in bf16, with a cache that later tests share."""
    return lipstream_json(
        "build", tiny["bf16"].path, "--recipe", "tiny-bf16", "-o", folder / "plans", "--cache", folder / "cache"
    )


def recipe_file(path: Path, **values: object) -> Path:
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"description": "a test", **values}.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_graph_is_built(built: dict[str, Any], folder: Path, tiny: dict[str, Bundle]) -> None:
    assert {*built["plans"]} == GRAPHS
    assert not any(plan["hit"] for plan in built["plans"].values())
    bundle = Bundle.load(folder / "plans")
    assert bundle.manifest.graphs == GRAPHS
    assert bundle.manifest.geometry == tiny["bf16"].manifest.geometry
    plans = bundle.manifest.plans
    assert plans
    assert (plans.recipe, plans.ring, plans.tensorrt, plans.verified) == (
        "tiny-bf16",
        "native",
        built["tensorrt"],
        None,
    )
    assert {*bundle.manifest.files} == {f"{graph}.plan" for graph in GRAPHS} | {
        "constants.safetensors",
        "reference.safetensors",
    }
    said = lipstream("inspect", folder / "plans").stdout
    assert "recipe tiny-bf16, ring native" in said
    assert "not verified yet" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "ring"), [("fp8", "native"), ("bf16", "function"), ("fp8", "function"), ("fp8-attention", "native")]
)
def test_every_precision_and_lowering_builds(
    needs_rig: None, tiny: dict[str, Bundle], tmp_path: Path, precision: str, ring: str
) -> None:
    recipe = recipe_file(tmp_path / "mine.toml", precision=precision[:4].strip("-"), ring=ring, optimization_level=1)
    report = lipstream_json(
        "build", tiny[precision].path, "--recipe", recipe, "-o", tmp_path / "plans", "--cache", tmp_path / "cache"
    )
    assert {*report["plans"]} == GRAPHS  # type: ignore[misc]


def test_the_second_build_comes_from_the_cache(built: dict[str, Any], tiny: dict[str, Bundle], folder: Path) -> None:
    again = lipstream_json(
        "build", tiny["bf16"].path, "--recipe", "tiny-bf16", "-o", folder / "again", "--cache", folder / "cache"
    )
    plans: Any = again["plans"]
    assert all(plan["hit"] for plan in plans.values())
    assert {name: plan["key"] for name, plan in plans.items()} == {n: p["key"] for n, p in built["plans"].items()}
    assert Bundle.load(folder / "again").manifest == Bundle.load(folder / "plans").manifest


def test_a_damaged_plan_in_the_cache_is_built_again(
    built: dict[str, Any], tiny: dict[str, Bundle], folder: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(folder / "cache", tmp_path / "cache")
    plan = cache / f"{built['plans']['video_encoder']['key']}.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    again = lipstream_json(
        "build", tiny["bf16"].path, "--recipe", "tiny-bf16", "-o", tmp_path / "plans", "--cache", cache
    )
    hits: Any = {name: p["hit"] for name, p in again["plans"].items()}  # type: ignore[attr-defined]
    assert hits == dict.fromkeys(GRAPHS, True) | {"video_encoder": False}


def test_dry_run_builds_nothing_and_names_what_cannot_be_parsed(
    needs_rig: None, tiny: dict[str, Bundle], tmp_path: Path
) -> None:
    report = lipstream_json("build", tiny["fp8"].path, "--recipe", "tiny-fp8", "--dry-run")
    graphs: Any = report["graphs"]
    assert graphs["denoiser"]["layers"]["kv_cache_update"] == 2 * tiny["fp8"].manifest.geometry.num_layers
    odd = shutil.copytree(tiny["fp8"].path, tmp_path / "odd")
    change_graph(odd, "video_encoder", add_nonsense)
    done = lipstream("build", odd, "--recipe", "tiny-fp8", "--dry-run", "--json")
    assert done.returncode == EngineBuildError.exit_code
    message = json.loads(done.stdout)["error"]["message"]
    assert "video_encoder" in message
    assert "DynamicQuantizeLinear" in message
    done = lipstream("build", odd, "--recipe", "tiny-fp8", "-o", tmp_path / "p", "--cache", tmp_path / "c")
    assert done.returncode == EngineBuildError.exit_code
    assert "DynamicQuantizeLinear" in done.stderr
    assert not (tmp_path / "p").exists()


def change_graph(bundle: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Another graph under the same name, and a manifest that agrees."""
    path = bundle / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def add_nonsense(model: onnx.ModelProto) -> None:
    """An operator that bundles may have, and TensorRT does not."""
    node = next(node for node in model.graph.node if "latents" in node.output)
    node.output[0] = "sense"
    codes = ["codes", "scale", "zero"]
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["sense"], codes, name="nonsense_0"))
    model.graph.node.append(helper.make_node("DequantizeLinear", codes, ["latents"], name="nonsense_1"))


@pytest.mark.slow
def test_two_builds_at_once_do_the_work_once(needs_rig: None, tiny: dict[str, Bundle], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lipstream", "build", tiny["bf16"].path, "--recipe", "tiny-bf16", "--json"]
    pair = [
        subprocess.Popen(
            [*command, "--cache", tmp_path / "cache", "-o", tmp_path / name],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in "ab"
    ]
    reports = [json.loads(process.communicate(timeout=300)[0]) for process in pair]
    for graph in GRAPHS:
        assert sorted(report["plans"][graph]["hit"] for report in reports) == [False, True]
    assert Bundle.load(tmp_path / "a").manifest == Bundle.load(tmp_path / "b").manifest


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_an_ended_build_leaves_no_lock_and_no_half_plan(
    needs_rig: None, tiny: dict[str, Bundle], tmp_path: Path, number: signal.Signals
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "plans"
    arguments = ["build", tiny["bf16"].path, "--recipe", "tiny-bf16", "-o", out, "--cache", cache]
    process = subprocess.Popen(
        [sys.executable, "-m", "lipstream", *arguments], env=environment(), stderr=subprocess.PIPE
    )
    while len([*cache.glob(".*.lock")]) < 2:  # the second graph, `denoiser`, is being built
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert not out.exists()
    assert len([*cache.glob("*.plan")]) == 1
    report = lipstream_json(*arguments)
    hits: Any = {name: plan["hit"] for name, plan in report["plans"].items()}  # type: ignore[attr-defined]
    assert hits == dict.fromkeys(GRAPHS, False) | {"audio_encoder": True}
    assert not [*cache.glob("*.part"), *cache.glob(".*.part"), *tmp_path.glob(".*.part")]


def test_a_flipped_byte_in_a_plan_is_refused(built: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    plans = shutil.copytree(folder / "plans", tmp_path / "plans")
    data = bytearray((plans / "denoiser.plan").read_bytes())
    data[len(data) // 2] ^= 1
    (plans / "denoiser.plan").write_bytes(data)
    with pytest.raises(BundleCorruptError, match=r"denoiser\.plan") as error:
        Bundle.load(plans)
    assert "sha256" in str(error.value)
    assert "lipstream build BUNDLE --recipe tiny-bf16" in error.value.fix


def test_verify_needs_a_gpu_and_plans(built: dict[str, Any], tiny: dict[str, Bundle], folder: Path) -> None:
    done = lipstream("verify", tiny["bf16"].path, "--json")
    assert json.loads(done.stdout)["error"]["code"] == "config"
    done = lipstream("verify", folder / "plans", "--json")
    assert json.loads(done.stdout)["error"]["code"] == "backend"
    assert "NVIDIA driver" in done.stderr


class TestKeys:
    """What decides what a plan is, with a TensorRT that is only a version."""

    @pytest.fixture(autouse=True)
    def version(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        module = types.ModuleType("tensorrt")
        module.__version__ = "11.4.0.106"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    def key(self, bundle: Bundle, recipe: str = "tiny-bf16") -> str:
        return key_of(facts(bundle, "denoiser", load_recipe(recipe)))

    def test_equal_things_have_equal_keys(self, tiny: dict[str, Bundle]) -> None:
        assert self.key(tiny["bf16"]) == self.key(Bundle.load(tiny["bf16"].path))

    def test_another_tensorrt_is_a_miss(self, tiny: dict[str, Bundle], version: Any) -> None:
        before = self.key(tiny["bf16"])
        version.__version__ = "11.4.0.107"
        assert self.key(tiny["bf16"]) != before

    def test_another_recipe_is_a_miss(self, tiny: dict[str, Bundle], tmp_path: Path) -> None:
        before = self.key(tiny["bf16"])
        for change in (
            {"ring": "function"},
            {"conv3d": "2d"},
            {"optimization_level": 5},
            {"workspace_gib": 1},
            {"weight_streaming": True},
        ):
            recipe = recipe_file(tmp_path / "mine.toml", precision="bf16", **change)
            assert self.key(tiny["bf16"], str(recipe)) != before

    def test_another_name_of_a_recipe_is_a_hit(self, tiny: dict[str, Bundle], tmp_path: Path) -> None:
        recipe = recipe_file(tmp_path / "mine.toml", precision="bf16")
        assert self.key(tiny["bf16"], str(recipe)) == self.key(tiny["bf16"])

    def test_changed_weights_are_a_miss(self, tiny: dict[str, Bundle], tmp_path: Path) -> None:
        other = shutil.copytree(tiny["bf16"].path, tmp_path / "other")
        data = bytearray((other / "weights.bin").read_bytes())
        data[1000] ^= 1
        (other / "weights.bin").write_bytes(data)
        manifest = json.loads((other / MANIFEST).read_text())
        manifest["files"]["weights.bin"]["sha256"] = sha256(other / "weights.bin")
        (other / MANIFEST).write_text(json.dumps(manifest))
        assert self.key(Bundle.load(other)) != self.key(tiny["bf16"])

    def test_another_gpu_is_a_miss(self, tiny: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.key(tiny["bf16"])
        gpu = {"cuda": "13.0", "gpu": H100.dump()}
        monkeypatch.setattr("lipstream_engines.build._gpu", lambda: gpu)
        assert self.key(tiny["bf16"]) != before


def plans_of(**changes: Any) -> Plans:
    values: dict[str, Any] = {
        "recipe": "1.3b-fp8-h100",
        "options": {},
        "ring": "native",
        "tensorrt": "11.4.0.106",
        "version_compatible": False,
        "cuda": "13.0",
        "gpu": H100.dump(),
        "source": "",
        "graphs": {},
    }
    return Plans(**{**values, **changes})


def test_plans_run_where_they_were_built_for() -> None:
    require_runnable(plans_of(), "plans", tensorrt="11.4.0.106", gpu=H100)
    require_runnable(plans_of(version_compatible=True), "plans", tensorrt="11.5.0.1", gpu=H100)


@pytest.mark.parametrize(
    ("plans", "tensorrt", "gpu", "sides"),
    [
        (plans_of(), "11.5.0.1", H100, ("TensorRT 11.4.0.106", "TensorRT 11.5.0.1")),
        (plans_of(version_compatible=True), "11.3.0.99", H100, ("TensorRT 11.4.0.106", "TensorRT 11.3.0.99")),
        (plans_of(version_compatible=True), "12.0.0.1", H100, ("TensorRT 11.4.0.106", "TensorRT 12.0.0.1")),
        (plans_of(), "11.4.0.106", Gpu("NVIDIA L4", "8.9", 58, 24 << 30), ("H100", "NVIDIA L4")),
        (plans_of(gpu=None), "11.4.0.106", H100, ("without a GPU", "H100")),
    ],
)
def test_plans_that_cannot_run_here_name_both_sides(
    plans: Plans, tensorrt: str, gpu: Gpu, sides: tuple[str, str]
) -> None:
    with pytest.raises(PlanError) as error:
        require_runnable(plans, "plans", tensorrt=tensorrt, gpu=gpu)
    assert all(side in error.value.found for side in sides)
    assert "lipstream build BUNDLE --recipe 1.3b-fp8-h100 -o plans" in error.value.fix


def test_the_shipped_recipes_load() -> None:
    assert {*recipes()} == {"1.3b-bf16-h100", "1.3b-fp8-h100", "14b-bf16-h100", "14b-fp8-h100", "tiny-bf16", "tiny-fp8"}
    for name in recipes():
        assert load_recipe(name).precision in name


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, "does not say its precision"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
        ({"precision": "bf16", "ring": "square"}, "ring = 'square'"),
        ({"precision": "bf16", "optimization_level": 6}, "optimization_level = 6"),
        ({"precision": "bf16", "optimization_level": True}, "optimization_level = True"),
        ({"precision": "bf16", "workspace_gib": -1}, "workspace_gib = -1"),
        ({"precision": "bf16", "weight_streaming": 1}, "weight_streaming = 1"),
        ({"precision": "bf16", "speed": "high"}, "sets speed"),
    ],
)
def test_recipes_with_impossible_values(values: dict[str, object], found: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=found):
        load_recipe(str(recipe_file(tmp_path / "r.toml", **values)))


def test_invalid_recipes(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("precision = ")
    for name in (str(tmp_path / "r.toml"), "no-such", str(tmp_path)):
        with pytest.raises(ConfigError, match="no recipe"):
            load_recipe(name)


def test_a_bundle_of_another_precision_names_the_export(tiny: dict[str, Bundle]) -> None:
    with pytest.raises(ConfigError) as error:
        require_precision(Bundle.load("tiny"), load_recipe("tiny-fp8"))
    assert "--precision fp8" in error.value.fix


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        PlanCache(tmp_path / "file" / "cache")


def test_the_inspectors_layers_are_counted() -> None:
    """In the form of TensorRT's JSON with detailed verbosity."""
    information = {
        "Layers": [
            {"Name": "a", "LayerType": "gemm", "Outputs": [{"Name": "x", "Format/Datatype": "FP8 E4M3"}]},
            {"Name": "b", "LayerType": "kgen", "Outputs": [{"Name": "y", "Format/Datatype": "BF16"}]},
            {"Name": "c", "LayerType": "mha", "Outputs": [], "Metadata": "_gemm_mha_v2_myl0"},
        ],
        "Bindings": [],
        "device_memory": 1024,
    }
    assert summarise(information) == {
        "layers": 3,
        "types": {"gemm": 1, "kgen": 1, "mha": 1},
        "precisions": {"FP8": 1, "BF16": 1},
        "fused_attention": 1,
        "device_memory": 1024,
    }


class TestDoctor:
    def test_missing_components_are_listed_first(self) -> None:
        report = diagnosis.examine()
        states = [f["state"] for f in report["findings"]]
        assert states == sorted(states, key=diagnosis.RANKS.index)
        assert report["ok"]
        assert all(f["fix"] for f in report["findings"] if f["state"] != "ok")
        assert len(diagnosis.describe(report).splitlines()) < 40

    def test_the_version_of_tensorrt_is_shown(self, needs_rig: None) -> None:
        report: Any = lipstream_json("doctor")
        assert {"state": "ok", "name": "TensorRT", "found": "11.4.0.106", "fix": ""} in report["findings"]

    def test_plans_without_a_gpu(self, built: dict[str, Any], folder: Path) -> None:
        done = lipstream("doctor", folder / "plans", "--json")
        report = json.loads(done.stdout)
        assert done.returncode == 1
        assert report["findings"][0]["state"] == "broken"
        assert "no GPU" in report["findings"][0]["found"]

    def test_a_broken_bundle(self, tmp_path: Path) -> None:
        (tmp_path / MANIFEST).write_text("{")
        assert not diagnosis.examine(tmp_path)["ok"]

    def test_bindings_and_libraries_of_two_versions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        versions = {"tensorrt-cu13-bindings": "11.4.0.106", "tensorrt-cu13-libs": "11.3.0.99"}

        def package(name: str) -> str:
            return f"{name} {versions[name]}" if name in versions else ""

        monkeypatch.setattr(diagnosis, "_package", package)
        (found,) = [f for f in diagnosis.examine()["findings"] if f["name"] == "TensorRT"]
        assert found["state"] == "broken"
        assert "11.4.0.106" in found["found"]
        assert "11.3.0.99" in found["found"]
