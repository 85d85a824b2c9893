"""Implement `lipstream export`: write a bundle from any source, and compare its graphs with PyTorch."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipstream.atomic import write_file
from lipstream.bundle import Bundle
from lipstream.bundle.golden import REFERENCE
from lipstream.errors import OutputError
from lipstream_models.parts import StudentParts
from lipstream_models.released.release import Release
from safetensors import SafetensorError
from tqdm import tqdm

from .bundle import export_bundle, graph_modules
from .parity import parity_report, require_parity
from .precision import Sensitivity, measure_sensitivity, quantise, record_passes, to_bfloat16, widen_module
from .precision.calibration import largest_inputs, largest_operands
from .precision.widen import widen_bundle
from .reference import reference
from .settings import Calibration
from .source import load_source

PRECISION = "precision.json"


def export(
    source: Path | Release,
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
        source: a checkpoint folder, a float32 bundle (also a shipped one's name), or published files.
        precision: "fp32", "bf16" or "fp8". calibration: how FP8 is calibrated.
        parity: compare ONNX Runtime with PyTorch; without it the bundle is written unchecked and has no report.

    Returns:
        `bundle` and `report` (paths), `bytes`, `parameters`, `precision`, `graphs`, `parity` (the report, or None), and
        with FP8 `fp8`, the sensitivity of its layers. Ready for JSON; `summary` formats it as text.

    Raises:
        CheckpointError: `source` is none of these. ConfigError: its sizes contradict each other.
        OutputError: `out` cannot be written. ParityError: the graphs' outputs differ from PyTorch's.
    """
    with tqdm(desc="load", disable=quiet or None, bar_format="{desc} {postfix} [{elapsed}]") as loading:
        parts = load_source(source, loading.set_postfix_str).with_constants()
    if precision == "fp32" and parts.student:
        parts.student.float()  # the product weights of published files are bfloat16
    files: dict[str, bytes] = {}
    report: dict[str, Any] = {}
    with tqdm(total=len(graph_modules(parts)) + 1, desc="export", unit="graph", disable=quiet or None) as bar:
        rounded, sensitivity = _in_precision(parts, precision, calibration or Calibration(), bar.set_postfix_str)
        if precision != "fp32":
            files[REFERENCE] = reference(parts, rounded, bar.set_postfix_str).dump()
        if sensitivity:
            files[PRECISION] = (json.dumps(sensitivity.report(), indent=1) + "\n").encode()

        def progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        def check(bundle: Bundle) -> None:
            progress("parity")
            if parity:
                report.update(_parity(rounded, bundle))
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
    parts: StudentParts, precision: str, calibration: Calibration, progress: Callable[[str], None]
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
    largest = largest_inputs(rounded, passes, c.method)
    sensitivity = measure_sensitivity(rounded, passes, largest, budget=c.budget, progress=progress)
    operands = largest_operands(rounded, passes) if c.attention else None
    return replace(rounded, student=quantise(rounded.student, sensitivity.quantised, operands)), sensitivity


def _parity(parts: StudentParts, bundle: Bundle) -> dict[str, Any]:
    """ONNX Runtime against PyTorch. Below float32 both in float32, with the rounded weights: see `precision.widen`."""
    if bundle.manifest.precision == "fp32":
        return parity_report(parts, bundle)
    wide = replace(parts, student=_wide(parts.student), taehv=_wide(parts.taehv), wan=_wide(parts.wan))
    with tempfile.TemporaryDirectory() as folder:
        return parity_report(wide, widen_bundle(bundle, Path(folder) / "bundle"), bundle.manifest.precision)


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
