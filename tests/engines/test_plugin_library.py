"""The plugin's library: as nvcc built it in TensorRT's own registry, and in plans on a simulated builder and GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doubles
import numpy as np
import pytest
from doubles import builder
from doubles.device import Device
from lipstream import plugin
from lipstream.bundle import Bundle
from lipstream.errors import BackendError, PlanError
from lipstream.gpu import Driver
from lipstream_engines.build import Built, build_plans, write_plans
from lipstream_engines.cache import PlanCache
from lipstream_engines.recipe import Recipe
from rig import environment
from toy_sessions import export_toy, offline, session, short

real_library = plugin.library

LOAD = """
import tensorrt
from lipstream import plugin
logger = tensorrt.Logger(tensorrt.Logger.ERROR)
builder = tensorrt.Builder(logger)
print("ready", flush=True)
for _ in range(2):
    plugin.load_plugin(tensorrt)
creator = tensorrt.get_plugin_registry().get_creator(plugin.NAME, plugin.VERSION, plugin.NAMESPACE)
print(*[(field.name, field.type.name) for field in creator.field_names])
"""


def test_tensorrt_finds_the_plugin_in_the_library(needs_rig: None) -> None:
    try:
        plugin.library()
    except BackendError:
        pytest.skip("needs nvcc: LipStream was built without its CUDA parts")
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    before, found = done.stdout.split("ready\n")
    assert found == "('eps', 'FLOAT32')\n"
    assert "KVRingWrite" not in before + done.stderr


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_toy(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The backend's modules on a simulated GPU with a simulated builder."""
    device = Device(1)
    library = tmp_path / "library.so"
    library.write_bytes(b"one build of the plugin")
    with doubles.gpu(device) as modules:
        builder.add(sys.modules["tensorrt"])
        sys.modules["tensorrt"].get_plugin_registry().libraries[str(library)] = (
            plugin.NAME,
            plugin.VERSION,
            plugin.NAMESPACE,
        )
        monkeypatch.setattr(plugin, "library", lambda: library)
        monkeypatch.setattr("lipstream_engines.build.driver", lambda: Driver("13.0", (doubles.GPU,)))
        yield modules


def build(bundle: Bundle, folder: Path) -> tuple[Bundle, Built]:
    recipe = Recipe("test", "", "fp32", ring="plugin", attends="length")
    built = build_plans(bundle, recipe, PlanCache(folder / "cache"), lambda *step: None)
    (denoiser,) = [plan for plan in built if plan.graph == "denoiser"]
    return write_plans(bundle, recipe, built, folder / "plans"), denoiser


def test_plans_with_the_plugin_are_built_and_run(machine: Any, bundle: Bundle, tmp_path: Path) -> None:
    plans, first = build(bundle, tmp_path)
    assert plans.manifest.plans
    assert plans.manifest.plans.ring == "plugin"
    with session(machine.TensorRTBackend(plans).open_stream(), plans) as opened:
        found = short(opened)
    expected = short(offline(bundle, rounded=True))
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(found.crops, expected.crops, strict=True)) <= 1
    _, again = build(bundle, tmp_path)
    assert (again.hit, again.key) == (True, first.key)
    plugin.library().write_bytes(b"another build of the plugin")
    _, other = build(bundle, tmp_path)
    assert not other.hit


def test_a_plan_built_without_the_flag_for_aliases_is_refused(
    machine: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder.IBuilderConfig, "set_preview_feature", lambda self, feature, enable: None)
    plans, _ = build(bundle, tmp_path)
    with pytest.raises(PlanError, match="does not write the ring where its recipe says"):
        machine.TensorRTBackend(plans)


def test_without_the_library_nothing_is_built(
    machine: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "library", real_library)
    monkeypatch.setattr(plugin, "LIBRARY", "absent.so")
    with pytest.raises(BackendError, match="plugin is missing") as error:
        build(bundle, tmp_path)
    assert 'ring = "native"' in error.value.fix
    assert not (tmp_path / "plans").exists()
