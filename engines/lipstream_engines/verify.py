"""Compare a bundle's engines with the float32 model in PyTorch, within the error of their precision.

Each number of attended frames and each block of the ring is run, with large numbers in what must not be read, and what
must not be written is compared, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.atomic import write_file
from lipstream.bundle import MANIFEST, Bundle, Geometry
from lipstream.bundle.golden import REFERENCE, UNREAD, Arrays, Reference, key, probe_chunks, probe_inputs
from lipstream.errors import ConfigError, VerificationError

from .lower_ring import ATTENDED
from .runner import PolygraphyRunner, Runner


def verify(
    bundle: Bundle,
    open_runner: Callable[[Path], Runner] = PolygraphyRunner,
    progress: Callable[[str], None] = lambda graph: None,
) -> dict[str, Any]:
    """Run every engine on the probe's inputs, compare, and write the result into the manifest.

    Returns:
        `passed`, `errors` and `allowed`: relative error of each output, by "graph/output@chunk".

    Raises:
        ConfigError: a bundle without plans or without a reference. VerificationError: an engine deviates too much; the
            manifest records it before the error is raised.
    """
    manifest = bundle.manifest
    if manifest.plans is None or REFERENCE not in manifest.files:
        raise ConfigError(
            f"{bundle.path} holds no plans with a reference",
            expected="a bundle that lipstream build wrote, of one exported in bf16 or fp8",
        )
    reference = Reference.load(bundle.file(REFERENCE))
    if not all("@" in name for name in reference.outputs):
        raise ConfigError(
            f"{bundle.path} has a reference of an earlier LipStream, with one chunk only",
            expected="one of each number of attended frames",
            fix="export the bundle again, then build it",
        )
    errors: dict[str, float] = {}
    for graph in sorted(manifest.graphs):
        progress(graph)
        runner = open_runner(bundle.file(f"{graph}.plan"))
        errors |= graph_errors(bundle, reference, graph, runner, in_place=manifest.plans.in_place)
    allowed = {name: reference.allowed(name) for name in errors}
    off = reference.off(errors)
    found = {"passed": not off and {*errors} == {*reference.outputs}, "errors": errors, "allowed": allowed}
    plans = replace(manifest.plans, verified=found)
    write_file(bundle.path / MANIFEST, replace(manifest, plans=plans).dump().encode())
    if not found["passed"]:
        worst = max(off, key=lambda name: np.nan_to_num(errors[name] / allowed[name], nan=np.inf), default="")
        what = f"the engines of {bundle.path} give {worst} with relative error {errors.get(worst, np.nan):.1e}"
        raise VerificationError(
            what if worst else f"the engines of {bundle.path} lack outputs of the reference",
            expected=f"at most {allowed[worst]:.1e}, as their precision allows" if worst else "all of them",
            fix="build again with the recipe's ring changed, and report it: it is a bug",
        )
    return found


def graph_errors(
    bundle: Bundle, reference: Reference, graph: str, runner: Runner, *, in_place: bool
) -> dict[str, float]:
    """Run one graph's engine on the probe's inputs. Returns the relative error of each output, by "graph/output@chunk".

    Args:
        bundle: with the manifest and constants of the graph. in_place: whether the engine writes its ring in place.
    """
    manifest, errors = bundle.manifest, dict[str, float]()
    for chunk in probe_chunks(manifest, graph):
        inputs = probe_inputs(manifest, bundle.constants, graph, runner.memories(), chunk)
        if in_place and "k.0" in inputs:
            errors |= _errors_in_place(manifest.geometry, reference, graph, chunk, runner, inputs)
        else:
            errors |= reference.compare(graph, chunk, runner.infer(inputs))
    return errors


def _errors_in_place(
    geometry: Geometry, reference: Reference, graph: str, chunk: int, runner: Runner, inputs: Arrays
) -> dict[str, float]:
    """Relative errors as in `chunk`; 1 for a ring that was changed where it is not attended."""
    attended = len(inputs["k.0"])
    outputs = from_native(runner.infer(to_native(inputs, geometry)), geometry)
    rings = {name for name in outputs if name.startswith(("k_out.", "v_out."))}
    changed = {key(graph, name, chunk): 1.0 for name in rings if not np.all(outputs[name][attended:] == UNREAD)}
    outputs |= {name: outputs[name][:attended] for name in rings}
    return reference.compare(graph, chunk, outputs) | changed


def to_native(inputs: Arrays, geometry: Geometry) -> Arrays:
    """Convert rings [attended, T, H, D] to inputs of natively lowered graphs: [1, H, window T, D], and the length.

    Slots that are not attended hold UNREAD.
    """
    turned = {
        name: _heads_first(x, geometry.window) if name.startswith(("k.", "v.")) else x for name, x in inputs.items()
    }
    return turned | ({ATTENDED: np.array([len(inputs["k.0"])], np.int64)} if "k.0" in inputs else {})


def from_native(outputs: Arrays, geometry: Geometry) -> Arrays:
    """Convert the rings back to the layout of the ONNX graphs."""
    g = geometry

    def back(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return x.reshape(g.num_heads, g.window, g.tokens, g.head_dim).transpose(1, 2, 0, 3)

    return {name: back(x) if name.startswith(("k_out.", "v_out.")) else x for name, x in outputs.items()}


def _heads_first(x: np.ndarray[Any, Any], window: int) -> np.ndarray[Any, Any]:
    attended, tokens, heads, dim = x.shape
    whole = np.full((heads, window, tokens, dim), UNREAD, x.dtype)
    whole[:, :attended] = x.transpose(2, 0, 1, 3)
    return whole.reshape(1, heads, window * tokens, dim)
