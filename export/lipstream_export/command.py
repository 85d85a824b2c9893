"""Implement `lipstream export`: write a bundle from any source, and compare its graphs with PyTorch."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lipstream.atomic import write_file
from lipstream.bundle import Bundle
from lipstream.bundle.golden import REFERENCE
from lipstream.errors import OutputError
from lipstream_models.parts import StudentParts
from lipstream_models.released.release import Release
from safetensors import SafetensorError

from .bundle import export_bundle
from .parity import parity_report, require_parity
from .precision import Sensitivity, measure_sensitivity, quantise, record_passes, to_bfloat16, widen_module
from .precision.calibration import largest_inputs, largest_operands
from .precision.widen import widen_bundle
from .progress import Progress, Stages
from .reference import reference
from .settings import Calibration
from .source import load_source

PRECISION = "precision.json"
SMALL = 100_000_000
"""Parameters of a student whose products are too small to be divided between threads."""


def export(
    source: Path | Release | StudentParts,
    out: Path,
    *,
    precision: str = "fp32",
    calibration: Calibration | None = None,
    parity: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the student in folder `source` to the bundle `out`, with its parity report beside it.

    The bundle is renamed to `out` only after ONNX Runtime agrees with PyTorch. The same source gives the same bytes
    each time. Progress is shown on stderr, unless `quiet`.

    Args:
        source: a checkpoint folder, a float32 bundle (also a shipped one's name), published files, or parts.
        precision: "fp32", "bf16" or "fp8". calibration: how FP8 is calibrated.
        parity: compare ONNX Runtime with PyTorch; without it the bundle is written unchecked and has no report.

    Returns:
        `bundle` and `report` (paths), `bytes`, `parameters`, `precision`, `graphs`, `parity` (the report, or None), and
        with FP8 `fp8`, the sensitivity of its layers. Ready for JSON; `summary` formats it as text.

    Raises:
        CheckpointError: `source` is none of these. ConfigError: its sizes contradict each other.
        OutputError: `out` cannot be written. ParityError: the graphs' outputs differ from PyTorch's.
    """
    files: dict[str, bytes] = {}
    report: dict[str, Any] = {}
    with Stages(quiet) as progress, ExitStack() as stack:
        progress("load", 0, 1)
        parts = load_source(source, lambda name: progress("load", 0, 1, name)).with_constants()
        if precision == "fp32" and parts.student:
            parts.student.float()  # the product weights of published files are bfloat16
        stack.enter_context(_threads(parts))
        rounded, sensitivity = _in_precision(parts, precision, calibration or Calibration(), progress)
        if precision != "fp32":
            files[REFERENCE] = reference(parts, rounded, progress).dump()
        if sensitivity:
            files[PRECISION] = (json.dumps(sensitivity.report(), indent=1) + "\n").encode()

        def check(bundle: Bundle) -> None:
            if parity:
                report.update(_parity(rounded, bundle, progress))
                require_parity(report)

        try:
            bundle = export_bundle(rounded, out, precision=precision, files=files, progress=progress, check=check)
            written = write_report(out, report) if parity else None
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{out} cannot be written: {error}", fix="choose another place") from error
    result = {
        "bundle": str(out),
        "report": written and str(written),
        "bytes": sum(file["bytes"] for file in bundle.manifest.files.values()),
        "parameters": bundle.manifest.model["parameters"],
        "precision": precision,
        "graphs": sorted(bundle.manifest.graphs),
        "parity": report or None,
    }
    if sensitivity:
        result["fp8"] = sensitivity.report()
    return result


def _in_precision(
    parts: StudentParts, precision: str, calibration: Calibration, progress: Progress
) -> tuple[StudentParts, Sensitivity | None]:
    """`parts` in `precision`, and for FP8 the sensitivity by which its layers were chosen."""
    if precision == "fp32":
        return parts, None
    rounded = to_bfloat16(parts)
    if precision == "bf16":
        return rounded, None
    assert rounded.student
    c = calibration
    passes = record_passes(parts, c.chunks, video=c.video, audio=c.audio, progress=progress)
    progress("ranges", 0, 1, "inputs of the layers")
    largest = largest_inputs(rounded, passes, c.method)
    sensitivity = measure_sensitivity(rounded, passes, largest, budget=c.budget, progress=progress)
    operands = largest_operands(rounded, passes) if c.attention else None
    return replace(rounded, student=quantise(rounded.student, sensitivity.quantised, operands)), sensitivity


@contextmanager
def _threads(parts: StudentParts) -> Iterator[None]:
    """One thread of PyTorch for a small student.

    Its threads wait for each other by spinning, after each of thousands of short operations. Where other work takes one
    of the cores, they spin for most of the time: an export of `tiny` took 138 s in place of 30.
    """
    threads = torch.get_num_threads()
    if parts.student and sum(p.numel() for p in parts.student.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _parity(parts: StudentParts, bundle: Bundle, progress: Progress) -> dict[str, Any]:
    """ONNX Runtime against PyTorch. Below float32 both in float32, with the rounded weights: see `precision.widen`."""
    if bundle.manifest.precision == "fp32":
        return parity_report(parts, bundle, progress=progress)
    wide = replace(parts, student=_wide(parts.student), taehv=_wide(parts.taehv), wan=_wide(parts.wan))
    with tempfile.TemporaryDirectory() as folder:
        widened = widen_bundle(bundle, Path(folder) / "bundle")
        return parity_report(wide, widened, bundle.manifest.precision, progress=progress)


def _wide(module: Any) -> Any:
    return module and widen_module(copy.deepcopy(module))


def summary(result: dict[str, Any]) -> str:
    """The result of `export` as text."""
    parity = result["parity"]
    agrees = "not compared with PyTorch"
    if parity:
        agrees = f"differs from PyTorch by {parity['worst']:.1e} at most ({parity['tolerance']:.0e} allowed)"
    sizes = f"{result['parameters'] / 1e6:.1f} M parameters, {result['bytes'] / 1e6:.1f} MB"
    fp8 = ""
    if "fp8" in result:
        layers, kept = result["fp8"]["layers"], result["fp8"]["kept"]
        fp8 = (
            f"\n  {len(layers) - len(kept)} of {len(layers)} linear layers in FP8, "
            f"predicted error of the velocity {result['fp8']['predicted']:.1e}; worst: {', '.join(list(layers)[:3])}"
        )
    graphs = f"{len(result['graphs'])} graphs in {result['precision']}"
    return f"{result['bundle']}: {graphs}, {sizes}\n{result['report'] or result['bundle']}: {agrees}{fp8}"


def write_report(bundle: Path, report: dict[str, Any]) -> Path:
    """Write `report` to `<bundle>.parity.json`, atomically; returns its path."""
    path = bundle.with_name(f"{bundle.name}.parity.json")
    write_file(path, (json.dumps(report, indent=2) + "\n").encode())
    return path
