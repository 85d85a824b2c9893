"""Compare a bundle's engines with the float32 model in PyTorch, within the error of their precision.

Each number of attended frames and each block of the ring is run, with large numbers in what must not be read, and what
must not be written is compared, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.atomic import write_file
from lipstream.bundle import MANIFEST, SIGNATURE, Bundle, Geometry
from lipstream.bundle.golden import (
    REFERENCE,
    UNREAD,
    Arrays,
    Reference,
    key,
    probe_chunks,
    probe_inputs,
    relative_error,
    sample,
)
from lipstream.bundle.plans import require_scales
from lipstream.errors import ConfigError, VerificationError

from .codes import nearest, to_codes
from .lower_ring import ATTENDED
from .runner import PolygraphyRunner, Runner

Scales = Sequence[Sequence[float]]
"""Of K and V, for each layer."""


def verify(
    bundle: Bundle,
    open_runner: Callable[[Path], Runner] = PolygraphyRunner,
    progress: Callable[[str], None] = lambda graph: None,
) -> dict[str, Any]:
    """Run every engine on the probe's inputs, compare, and write the result into the manifest.

    A signature of the manifest is deleted: sign a bundle after it is verified.

    Returns:
        `passed`, `errors` and `allowed`: relative error of each output, by "graph/output@chunk".

    Raises:
        ConfigError: a bundle without plans or without a reference. PlanError: its manifest lacks the scales of a ring
            in FP8. VerificationError: an engine deviates too much; the manifest records it before the error is raised.
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
        if graph == "denoiser":
            layers = manifest.geometry.num_layers
            require_scales(manifest.plans, bundle.path, layers=layers, fp8=runner.ring_in_fp8())
        errors |= graph_errors(
            bundle, reference, graph, runner, in_place=manifest.plans.in_place, scales=manifest.plans.scales
        )
    allowed = {name: reference.allowed(name) for name in errors}
    off = reference.off(errors)
    found = {"passed": not off and {*errors} == {*reference.outputs}, "errors": errors, "allowed": allowed}
    plans = replace(manifest.plans, verified=found)
    (bundle.path / SIGNATURE).unlink(missing_ok=True)  # it was of the manifest as it is until now
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
    bundle: Bundle,
    reference: Reference,
    graph: str,
    runner: Runner,
    *,
    in_place: bool,
    scales: Scales | None = None,
) -> dict[str, float]:
    """Run one graph's engine on the probe's inputs. Returns the relative error of each output, by "graph/output@chunk".

    Args:
        bundle: with the manifest and constants of the graph. in_place: whether the engine writes its ring in place.
        scales: of its ring, if that is in FP8.
    """
    manifest, errors = bundle.manifest, dict[str, float]()
    for chunk in probe_chunks(manifest, graph):
        inputs = probe_inputs(manifest, bundle.constants, graph, runner.memories(), chunk)
        if in_place and "k.0" in inputs:
            errors |= _errors_in_place(manifest.geometry, reference, graph, chunk, runner, inputs, scales)
        else:
            errors |= reference.compare(graph, chunk, runner.infer(inputs))
    return errors


def _errors_in_place(
    geometry: Geometry,
    reference: Reference,
    graph: str,
    chunk: int,
    runner: Runner,
    inputs: Arrays,
    scales: Scales | None,
) -> dict[str, float]:
    """Relative errors as in `chunk`; 1 for a ring that was changed where it is not attended.

    A ring in FP8 is compared before its rounding, as far as codes show that (`nearest`): what is allowed is the same.
    """
    attended = len(inputs["k.0"])
    given = to_native(inputs, geometry, scales)
    outputs = from_native(runner.infer(given), geometry)
    before = from_native({name.replace(".", "_out."): given[name] for name in _scaled(inputs, scales)}, geometry)
    rings = _scaled(outputs, scales)
    changed = {
        key(graph, name, chunk): 1.0
        for name in rings
        if not np.array_equal(outputs[name][attended:], before[name][attended:])
    }
    outputs |= {name: outputs[name][:attended] for name in rings}
    codes = {name: scale for name, scale in rings.items() if scale is not None}
    errors = reference.compare(graph, chunk, {name: x for name, x in outputs.items() if name not in codes})
    for name, scale in codes.items():
        place = key(graph, name, chunk)
        expected = reference.outputs[place]
        errors[place] = relative_error(nearest(sample(outputs[name]), scale, expected), expected)
    return errors | changed


def _scaled(tensors: Arrays, scales: Scales | None) -> dict[str, float | None]:
    """The rings among `tensors`, by name, with their scales, None for a ring of numbers."""
    found: dict[str, float | None] = {}
    for name in tensors:
        kind, _, layer = name.partition(".")
        if kind in ("k", "v", "k_out", "v_out"):
            found[name] = scales[int(layer)]["kv".index(kind[0])] if scales else None
    return found


def to_native(inputs: Arrays, geometry: Geometry, scales: Scales | None = None) -> Arrays:
    """Convert rings [attended, T, H, D] to inputs of natively lowered graphs: [1, H, window T, D], and the length.

    Slots that are not attended hold UNREAD, or with the scales of a ring in FP8 its code: the largest.
    """
    turned = dict(inputs)
    for name, scale in _scaled(inputs, scales).items():
        ring = _heads_first(inputs[name], geometry.window)
        turned[name] = ring if scale is None else to_codes(ring, scale)
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
