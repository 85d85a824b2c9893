"""`verify` accepts engines that compute what the model does, and finds those that read or write other slots.

ONNX Runtime takes the place of the GPU: it runs the lowered graphs in float32, TensorRT's operators given bodies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_stand_ins import (
    AlwaysTheFirstBlock,
    Engine,
    IgnoresTheLength,
    Imprecise,
    OneFrameLess,
    WritesBeyond,
    session_of,
)
from lipstream.bundle import CONSTANTS, Bundle, sign, writing
from lipstream.bundle.golden import REFERENCE, Reference
from lipstream.bundle.keys import new_key
from lipstream.bundle.plans import RINGS, Plans
from lipstream.errors import ConfigError, VerificationError
from lipstream_engines.lower_ring import Lowering, phases
from lipstream_engines.runner import Runner
from lipstream_engines.verify import verify

Arrays = dict[str, Any]


def with_plans(source: Bundle, ring: Lowering, out: Path) -> Bundle:
    """The bundle with files in place of plans."""
    plans = Plans("test", {}, ring, "11.4.0.106", False, "13.0", None, "", {})
    with writing(out, replace(source.manifest, plans=plans, files={})) as folder:
        for graph in source.manifest.graphs:
            (folder / f"{graph}.plan").write_bytes(b"plan")
        for name in (CONSTANTS, REFERENCE):
            (folder / name).write_bytes((source.path / name).read_bytes())
    return Bundle.load(out)


@pytest.fixture(scope="module")
def sessions(tiny: dict[str, Bundle]) -> dict[tuple[str, str], Any]:
    """Every graph of tiny in bf16, lowered each way."""
    source = tiny["bf16"]
    return {(ring, graph): session_of(source, graph, ring) for ring in RINGS for graph in source.manifest.graphs}


def check(bundle: Bundle, sessions: Any, engine: type[Engine]) -> dict[str, Any]:
    assert bundle.manifest.plans
    ring = bundle.manifest.plans.ring

    def opened(plan: Path) -> Runner:
        return engine(sessions[ring, plan.stem])

    return verify(bundle, opened)


@pytest.mark.parametrize("ring", RINGS)
def test_engines_that_compute_the_same_are_accepted(
    tiny: dict[str, Bundle], sessions: Any, ring: Lowering, tmp_path: Path
) -> None:
    plans = with_plans(tiny["bf16"], ring, tmp_path / "plans")
    new_key(tmp_path / "key.pem")
    sign(plans.path, tmp_path / "key.pem")
    found = check(plans, sessions, Engine)
    assert found["passed"]
    assert {name.partition("/")[0] for name in found["errors"]} == tiny["bf16"].manifest.graphs
    velocities = [name for name in found["errors"] if name.startswith("denoiser/velocity")]
    assert len(velocities) == len([*phases(plans.manifest.geometry)]) == 3
    after = Bundle.load(plans.path)
    assert after.signer is None  # what was signed is another manifest
    stored = after.manifest.plans
    assert stored
    assert stored.verified == found


@pytest.mark.parametrize(
    ("engine", "ring", "outputs"),
    [
        (Imprecise, "native", {f"denoiser/velocity@{chunk}" for chunk in (0, 1, 2)}),
        (IgnoresTheLength, "native", {"denoiser/velocity@0", "denoiser/velocity@1"}),
        (OneFrameLess, "native", {f"denoiser/velocity@{chunk}" for chunk in (0, 1, 2)}),
        (AlwaysTheFirstBlock, "native", {"denoiser/velocity@1", "denoiser/k_out.0@1", "denoiser/v_out.0@1"}),
        (AlwaysTheFirstBlock, "function", {"denoiser/velocity@1", "denoiser/k_out.0@1", "denoiser/v_out.0@1"}),
        (WritesBeyond, "native", {"denoiser/v_out.0@0", "denoiser/v_out.0@1"}),
    ],
)
def test_engines_that_compute_something_else_are_refused(
    tiny: dict[str, Bundle],
    sessions: Any,
    engine: type[Engine],
    ring: Lowering,
    outputs: set[str],
    tmp_path: Path,
) -> None:
    plans = with_plans(tiny["bf16"], ring, tmp_path / "plans")
    with pytest.raises(VerificationError, match="relative error"):
        check(plans, sessions, engine)
    stored = Bundle.load(plans.path).manifest.plans
    assert stored
    assert stored.verified
    found: Any = stored.verified
    assert not found["passed"]
    off = {name for name, error in found["errors"].items() if not error <= found["allowed"][name]}
    assert outputs <= off
    clean = {"denoiser/velocity@2"} if engine is IgnoresTheLength else {"denoiser/velocity@0"} - outputs
    assert not clean & off


def test_a_reference_of_one_chunk_is_refused(tiny: dict[str, Bundle], sessions: Any, tmp_path: Path) -> None:
    plans = with_plans(tiny["bf16"], "native", tmp_path / "plans")
    stored = Reference.load(plans.file(REFERENCE))
    old = {name.partition("@")[0]: x for name, x in stored.outputs.items()}
    (plans.path / REFERENCE).write_bytes(Reference(old, dict.fromkeys(old, 0.0)).dump())
    with pytest.raises(ConfigError, match="earlier LipStream") as error:
        check(plans, sessions, Engine)
    assert "export" in error.value.fix
