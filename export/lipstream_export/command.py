"""The work behind `lipstream export`: a checkpoint folder to a bundle that is known to compute the same."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from lipstream.bundle import Bundle
from lipstream.errors import CheckpointError, OutputError
from lipstream.partial import write_file
from lipstream_training.checkpoint import DESCRIPTION, Checkpoint
from lipstream_training.models.speech import WIDTHS
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from .bundle import Parts, export_bundle, graph_modules
from .parity import parity_report, require_parity

RETRAIN = "copy the folder again, or train it again: lipstream-train --help"


def export(checkpoint: Path, out: Path, *, json_output: bool = False) -> dict[str, Any]:
    """Write the student in folder `checkpoint` to the bundle `out`, with its parity report beside it.

    The bundle takes its name only after ONNX Runtime has been seen to agree with PyTorch. The same checkpoint gives the
    same bytes each time. Progress goes to stderr, what came of it to stdout, with `json_output` as JSON.

    Returns:
        What the JSON holds: `bundle`, `report` (paths), `bytes`, `parameters`, `graphs`, `parity` (the report).

    Raises:
        CheckpointError: `checkpoint` is not what training leaves. ConfigError: its sizes do not go together.
        OutputError: `out` cannot be written. ParityError: the graphs compute something else.
    """
    source = load_checkpoint(checkpoint)
    config = source.student.config
    parts = Parts(source.student, source.text, source.taehv, source.speech, source.masks, source.model)
    report: dict[str, Any] = {}
    with tqdm(total=len(graph_modules(parts, config)) + 1, desc="export", unit="graph", disable=None) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        def check(bundle: Bundle) -> None:
            progress("parity")
            report.update(parity_report(parts, config, bundle))
            require_parity(report)

        try:
            bundle = export_bundle(parts, config, out, progress=progress, check=check)
            written = write_report(out, report)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{out} cannot be written: {error}", fix="choose another place") from error
    result = {
        "bundle": str(out),
        "report": str(written),
        "bytes": sum(file["bytes"] for file in bundle.manifest.files.values()),
        "parameters": bundle.manifest.model["parameters"],
        "graphs": list(report["graphs"]),
        "parity": report,
    }
    print(json.dumps(result, indent=2) if json_output else summary(result))
    return result


def summary(result: dict[str, Any]) -> str:
    """The result in two lines for people."""
    parity = result["parity"]
    sizes = f"{result['parameters'] / 1e6:.1f} M parameters, {result['bytes'] / 1e6:.1f} MB"
    return (
        f"{result['bundle']}: {len(result['graphs'])} graphs, {sizes}\n"
        f"{result['report']}: differs from PyTorch by {parity['worst']:.1e} at most ({parity['tolerance']:.0e} allowed)"
    )


def write_report(bundle: Path, report: dict[str, Any]) -> Path:
    """Write `report` to `<bundle>.parity.json`, atomically; returns its path."""
    path = bundle.with_name(f"{bundle.name}.parity.json")
    write_file(path, (json.dumps(report, indent=2) + "\n").encode())
    return path


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder, and see that everything in it has the shape that its sizes ask for.

    Raises:
        CheckpointError: a file is missing, unreadable or does not fit the others.
    """
    if not (folder / DESCRIPTION).is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint", expected=f"a folder with {DESCRIPTION}, as lipstream-train leaves it"
        )
    try:
        checkpoint = Checkpoint.load(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise CheckpointError(f"{folder} does not load: {reason}", fix=RETRAIN) from error
    config, taehv = checkpoint.student.config, checkpoint.taehv.config
    if config.latent_channels != taehv.latent_channels:
        raise CheckpointError(
            f"{folder}: the student has {config.latent_channels} latent channels, the TAEHV {taehv.latent_channels}",
            expected="models that were trained together",
        )
    if config.spatial != taehv.spatial:
        raise CheckpointError(
            f"{folder}: the student's latents are {config.spatial} times smaller, the TAEHV's {taehv.spatial}",
            expected="models that were trained together",
        )
    if config.audio_dim != WIDTHS[-1]:
        raise CheckpointError(
            f"{folder}: the student hears {config.audio_dim} features, its speech encoder gives {WIDTHS[-1]}",
            expected="models that were trained together",
        )
    wanted = {"text": (config.text_len, config.text_dim), "mask.latent": config.latent_size}
    wanted |= {f"mask.{name}": config.crop_size for name in ("pixel", "composite")}
    extras = {"text": checkpoint.text, **{f"mask.{name}": mask for name, mask in checkpoint.masks.items()}}
    for name, shape in wanted.items():
        found = tuple(extras[name].shape) if name in extras else "missing"
        if found != shape:
            raise CheckpointError(f"{name} of {folder} is {found}", expected=str(shape), fix=RETRAIN)
    parts = checkpoint.student, checkpoint.taehv, checkpoint.speech
    tensors: dict[str, Tensor] = {name: x for part in parts for name, x in part.state_dict().items()} | extras
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} of {folder} holds values that are not finite", fix=RETRAIN)
    return checkpoint
