"""`lipstream inspect`: bundles with the SDK itself; weight files and built engines with other packages.

Those packages register functions as entry points of the group `lipstream.inspectors`: `weights` (Path -> dict with
`path`, `kind`, `size`, `tensors`, `parameters`, `bytes`) and `layers` (Bundle -> per graph a dict with `layers`,
`precisions`, `fused_attention`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import Command, Result, needs_extra

if TYPE_CHECKING:
    from ..bundle.plans import Plans

_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        nargs="?",
        default="tiny",
        help="folder or shipped name (default tiny), or a weight file",
    )
    parser.add_argument(
        "--layers", action="store_true", help="for engines: the layers of the built graphs; needs the GPU"
    )


def _run(args: argparse.Namespace) -> Result:
    from ..bundle import Bundle

    path = Path(args.bundle)
    if path.is_file() or (path.suffix in _WEIGHTS and not path.exists()):
        weights = _inspector("weights", "inspecting weight files", "export")(path)
        return Result(weights, _describe_weights(weights))
    bundle = Bundle.load(args.bundle)
    report: dict[str, Any] = {"path": str(bundle.path), "signed_by": bundle.signer, **bundle.manifest.fields()}
    if args.layers:
        report["layers"] = _inspector("layers", "inspecting engines", "tensorrt")(bundle)
    m, g = bundle.manifest, bundle.manifest.geometry
    size = sum(file["bytes"] for file in m.files.values())
    millions, licence = m.model.get("parameters", 0) / 1e6, m.model.get("licence", "unknown")
    lines = [
        f"{m.model.get('name', bundle.path.name)}: {m.model.get('description', '')}",
        f"  {millions:.1f} M parameters, {m.precision}, licence {licence}",
        f"  crops {g.crop_size[1]}x{g.crop_size[0]}, window {g.window} with sink {g.sink}, times {list(m.t_list)}",
        f"  signed by {bundle.signer}" if bundle.signer else "  not signed",
        f"  {size / 1e6:.1f} MB in {len(m.files)} files, all matching the manifest:",
    ]
    lines += [f"    {file['bytes']:>10} {file['sha256'][:12]} {name}" for name, file in m.files.items()]
    if m.plans:
        lines.append(_describe_plans(m.plans))
    for name, engine in report.get("layers", {}).items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in engine["precisions"].items())
        lines.append(f"  {name}: {engine['layers']} layers ({kinds}), {engine['fused_attention']} fused attentions")
    return Result(report, "\n".join(lines))


def _inspector(name: str, what: str, extra: str) -> Callable[[Any], dict[str, Any]]:
    (entry,) = entry_points(group="lipstream.inspectors", name=name)
    with needs_extra(what, extra):
        inspector: Callable[[Any], dict[str, Any]] = entry.load()
    return inspector


def _describe_weights(found: dict[str, Any]) -> str:
    size = f" ({found['size']})" if found["size"] else ""
    return (
        f"{found['path']}: {found['kind']}{size}\n"
        f"  {found['tensors']} tensors, {found['parameters']:,} parameters, {found['bytes'] / 1e9:.2f} GB"
    )


def _describe_plans(plans: Plans) -> str:
    """How the plans were built and whether they were verified, in two lines."""
    gpu = f"on {plans.gpu['name']}" if plans.gpu else "without a GPU: to check the graphs, not to run"
    verified = plans.verified
    state = "not verified yet" if verified is None else "verified" if verified.get("passed") else "verified: WRONG"
    return (
        f"  plans of recipe {plans.recipe}, ring {plans.ring}, TensorRT {plans.tensorrt}, {gpu}\n"
        f"  {state} (lipstream verify)"
    )


INSPECT = Command("inspect", "describe a bundle", "Check a bundle and print its contents.", _add_arguments, _run)
