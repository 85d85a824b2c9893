"""`lipstream evaluate`. Imports no torch before the command runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lipstream.cli import Command, Result, UsageError, needs_extra


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("systems", metavar="[NAME=]RESULTS", nargs="+", help="a video or a folder of videos, for each system")
    add(
        "--references",
        required=True,
        type=Path,
        metavar="PATH",
        help="the video, or the folder of videos, that the systems dubbed",
    )
    add("--audio", type=Path, metavar="PATH", help="the speech, a file or folder (default: each result's sound)")
    add("-o", "--output", type=Path, metavar="OUT", help="folder for the page and the numbers")
    add("--published", action="store_true", help="also the rows that the paper publishes")
    weights = parser.add_argument_group("weights, which are not shipped; a metric without its weights is left out")
    weights.add_argument(
        "--syncnet",
        metavar="FILE",
        help="for Sync-C and Sync-D: syncnet_v2.model; or 'drawn', a small one for drawn faces",
    )
    weights.add_argument("--lpips", type=Path, metavar="FILE", help="for LPIPS: torchvision's AlexNet")
    weights.add_argument("--arcface", type=Path, metavar="FILE", help="for CSIM: a face recogniser, ONNX")
    weights.add_argument("--inception", type=Path, metavar="FILE", help="for FID: Inception of torch-fidelity")
    weights.add_argument("--i3d", type=Path, metavar="FILE", help="for FVD: I3D of cd-fvd")
    add("--workers", type=int, default=0, help="processes (default: one per core)")


def _run(args: argparse.Namespace) -> Result:
    with needs_extra("lipstream evaluate", "evaluate"):
        from .command import Judges, evaluate
    named = [text.partition("=") for text in args.systems]
    systems = {name if sign else Path(name).stem: Path(path if sign else name) for name, sign, path in named}
    if len(systems) < len(named):
        raise UsageError("two results have the same name", fix="name each one differently, as in NAME=RESULTS")
    networks = {name: path for name in ("lpips", "arcface", "inception", "i3d") if (path := getattr(args, name))}
    found, text = evaluate(
        systems,
        args.references,
        args.audio,
        Judges(args.syncnet, networks),
        args.output,
        paper=args.published,
        workers=args.workers,
        quiet=args.quiet,
    )
    if args.output:
        args.written.append(args.output)
        text += f"\n{args.output / 'index.html'}: pictures, and the mouths over time"
    left_out = [f"{metric} is left out: {why}" for metric, why in found["left_out"].items()]
    return Result(found, text, left_out if args.json else ())  # the text has them already


EVALUATE = Command(
    "evaluate",
    "results against references, in numbers and pictures",
    "Evaluate results of one or more systems: lips against sound, pictures against their references. Writes "
    "OUT/index.html and OUT/evaluation.json. Videos of any frame rate and size; a result that is early or late "
    "against its reference is shifted back for the comparison, and the shift is reported. Needs lipstream[evaluate].",
    _add_arguments,
    _run,
)
