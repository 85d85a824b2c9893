"""The command line `lipstream-train`. Imports no torch before a command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipstream.cli import Command, Program, Result, needs_extra
from lipstream.cli import main as run_program
from lipstream.errors import ConfigError, OutputError

from .distil.cli import ANALYZE, DISTIL, PLAN, STUDY
from .launch import announces
from .prepare.cli import PREPARE

VIDEO_TEXT = "Good morning. This is how I spoke before anybody put other words on my lips."
SPEECH_TEXT = (
    "Hello! My lips are drawn, chunk by chunk, by a small causal diffusion model, in two steps. "
    "It runs on an ordinary processor, faster than I can talk. Wow."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. See `lipstream.cli.main`."""
    return run_program(argv, LIPSTREAM_TRAIN)


def _add_tiny_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the data, the stages and the checkpoint")
    parser.add_argument("--clips", type=int, metavar="N", help="clips to make (default 1800)")
    parser.add_argument("--first", type=int, metavar="N", help="number of the first clip, others are other people")
    parser.add_argument("--steps", type=int, metavar="N", help="of the student (default 2700)")
    parser.add_argument(
        "--from", type=Path, dest="start", metavar="SOURCE", help="checkpoint or bundle to train on (default: nothing)"
    )


@needs_extra("lipstream-train tiny", "training")
def _tiny(args: argparse.Namespace) -> Result:
    from lipstream_export.source import load_source

    from .tiny import TinyRecipe, train_tiny

    recipe = TinyRecipe()
    sizes: dict[str, Any] = {name: value for name in ("clips", "first") if (value := getattr(args, name)) is not None}
    student = recipe.student
    if args.steps is not None:
        student = replace(student, steps=args.steps)
    if args.start:  # lower than from scratch: a higher rate first undoes what is learned
        student = replace(student, learning_rate=0.7 * student.learning_rate)
    sizes["student"] = student
    train_tiny(args.out, replace(recipe, **sizes), load_source(args.start) if args.start else None)
    checkpoint = args.out / "checkpoint"
    text = f"the student is in {checkpoint}; next: lipstream export {checkpoint} -o BUNDLE"
    return Result({"checkpoint": str(checkpoint)}, text)


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a float32 bundle, or a shipped one's name")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write")


@needs_extra("lipstream-train import", "training")
def _import(args: argparse.Namespace) -> Result:
    from lipstream_export.source import load_source
    from lipstream_models.unfold import unfolded

    if args.output.exists():
        raise OutputError(f"{args.output} exists", expected="the name of a new folder")
    try:
        unfolded(load_source(args.bundle)).save(args.output)
    except ValueError as error:
        raise ConfigError(f"{args.bundle} cannot be a checkpoint: {error}", expected="a student such as tiny") from None
    text = f"{args.output}: a checkpoint; next: lipstream-train tiny OUT --from {args.output}, or distil --init"
    return Result({"checkpoint": str(args.output)}, text)


def _add_syncnet_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FILE", help=".safetensors to write")


@needs_extra("lipstream-train syncnet", "training")
def _syncnet(args: argparse.Namespace) -> Result:
    from .syncnet import SyncNetRecipe, train_syncnet

    train_syncnet(args.out, SyncNetRecipe())
    text = f"{args.out}: for --syncnet of lipstream evaluate and lipstream-train prepare"
    return Result({"output": str(args.out)}, text)


def _add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--person", type=int, default=705, help="number of the identity (default 705)")
    parser.add_argument("--video-text", default=VIDEO_TEXT, help="what the person in the video says")
    parser.add_argument("--speech-text", default=SPEECH_TEXT, help="what the voice says")


@needs_extra("lipstream-train sample", "training")
def _sample(args: argparse.Namespace) -> Result:
    from .data.sample import render_sample

    paths = render_sample(args.out, person=args.person, video_text=args.video_text, speech_text=args.speech_text)
    files = [str(path) for path in paths]
    return Result({"files": files}, "\n".join(files))


TINY = Command(
    "tiny",
    "train the tiny student from random weights",
    "Draws and renders its own data and trains the tiny student; needs the extras [training] and [people]. A second "
    "run in the same folder reuses what is finished, and continues clips and student where an interrupted one stopped. "
    "Then: lipstream export OUT/checkpoint -o BUNDLE",
    _add_tiny_arguments,
    _tiny,
)
IMPORT = Command(
    "import",
    "a bundle's student as a checkpoint, to be trained on",
    "Writes the weights of a float32 bundle as a checkpoint of lipstream-train. Those behind a bundle's constants "
    "(times of the passes, prompt) are not in it: others with the same results take their place.",
    _add_import_arguments,
    _import,
)
SYNCNET = Command(
    "syncnet",
    "train the small SyncNet on drawn faces",
    "Draws clips and trains the net that ships as 'drawn'; about a quarter of an hour on two cores.",
    _add_syncnet_arguments,
    _syncnet,
)
SAMPLE = Command(
    "sample",
    "render a person and a voice to dub",
    "Writes OUT/face.mp4, a 3D person of an identity that is never trained on, and OUT/speech.wav. Needs the extra "
    "[people].",
    _add_sample_arguments,
    _sample,
)
COMMANDS = (TINY, IMPORT, PREPARE, DISTIL, STUDY, ANALYZE, PLAN, SYNCNET, SAMPLE)
LIPSTREAM_TRAIN = Program("lipstream-train", "Train students of Lip Forcing.", lambda: COMMANDS, announces)

if __name__ == "__main__":
    sys.exit(main())
