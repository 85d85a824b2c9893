"""`lipstream-train distil`, `study`, `analyze` and `plan`. Imports no torch before a command runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipstream.cli import Command, Result, needs_extra
from lipstream.errors import ConfigError

from ..launch import is_rank_zero
from .recipe import Recipe, load_recipe


def _add_distil_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder for checkpoints, log and the result")
    add(
        "--data",
        nargs="+",
        action="extend",
        required=True,
        metavar="SHARDS[=WEIGHT]",
        help="folders of lipstream-train prepare; with weights an epoch has of each folder the share that its weight "
        "has of their sum, without weights every clip once",
    )
    add("--validate", type=Path, metavar="SHARDS", help="clips that are not trained on: their loss goes to the log")
    add("--validate-every", type=int, default=100, metavar="N", help="updates between two validations (default 100)")
    add(
        "--validate-clips",
        type=int,
        default=4,
        metavar="N",
        help="with --codec or --base these first ones are generated, too: sync measures and a picture (default 4)",
    )
    add(
        "--loggers",  # not --log: torchrun takes that for its --log-dir, even after the name of the script
        default="tensorboard",
        metavar="NAMES",
        help="beside OUT/log.jsonl: tensorboard (default), wandb, mlflow, or several with commas",
    )
    add("--recipe", metavar="RECIPE", help="values of the fields below: default, released (upstream's), or a TOML file")
    for name, help_text in (
        ("init", "initial weights: a folder of a stage, or released files, as of lipstream export (default: random)"),
        ("teacher", "weights of the teacher, for self_forcing"),
        ("critic", "initial weights of the fake score (default: the teacher's)"),
    ):
        add(f"--{name}", type=Path, nargs="+", metavar="FILE", default=[], help=help_text)
    add("--negative", type=Path, metavar="FILE", help="embedding of the negative prompt (default: 0)")
    add("--syncnet", metavar="FILE", help="SyncNet of the reward and of --validate: a file, or 'drawn'")
    add(
        "--codec",
        type=Path,
        metavar="FILE",
        help="decoder for reward, samples and --validate: taew2_1, or a checkpoint",
    )
    add(
        "--base",
        type=Path,
        metavar="CHECKPOINT",
        help="codec, audio encoder and masks for OUT/checkpoint, for lipstream export",
    )
    fields = parser.add_argument_group("recipe")
    for field in dataclasses.fields(Recipe):
        option = f"--{field.name.replace('_', '-')}"
        released = field.metadata["released"]
        values = f"default {field.default}" + (f", released {released}" if released != field.default else "")
        fields.add_argument(option, metavar="X", help=f"{field.metadata['help']} ({values})".replace("%", "%%"))


def weighted(given: Sequence[str]) -> tuple[tuple[Path, ...], tuple[float, ...]]:
    """Folders and weights from FOLDER or FOLDER=WEIGHT; no weights where none is given.

    Raises:
        ConfigError: a weight is no number, or only some folders have one.
    """
    folders, weights = [], []
    for text in given:
        folder, equals, weight = text.rpartition("=")
        if not equals or Path(text).is_dir():  # a folder's name may have "=" in it
            folders.append(Path(text))
            continue
        folders.append(Path(folder))
        try:
            weights.append(float(weight))
        except ValueError:
            raise ConfigError(f"--data {text!r}", expected="FOLDER or FOLDER=WEIGHT, such as drawn=0.5") from None
    if weights and len(weights) < len(folders):
        raise ConfigError(f"--data {' '.join(given)}", expected="a weight for every folder, or for none")
    return tuple(folders), tuple(weights)


@needs_extra("lipstream-train distil", "training")
def _distil(args: argparse.Namespace) -> Result | None:
    from .command import Inputs, distil

    names = [field.name for field in dataclasses.fields(Recipe)]
    changes = {name: value for name in names if (value := getattr(args, name)) is not None}
    inputs = Inputs(
        *weighted(args.data),
        tuple(args.init),
        tuple(args.teacher),
        tuple(args.critic),
        args.negative,
        args.syncnet,
        args.codec,
        args.base,
        args.validate,
        args.validate_every,
        args.validate_clips,
    )
    distil(args.out, inputs, load_recipe(args.recipe, **changes), log=args.loggers, quiet=args.quiet)
    if not is_rank_zero():
        return None
    student = args.out / "student.safetensors"
    text = f"{student}; next: lipstream export --student {student}, or the next stage --init {args.out}"
    return Result({"student": str(student)}, text)


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder for data, weights and results")
    add("--seeds", type=int, default=3, help="default 3")
    add("--scale", type=float, default=1.0, help="times the usual number of updates (default 1)")
    add("--workers", type=int, default=2, help="processes (default 2)")


@needs_extra("lipstream-train study", "training")
def _study(args: argparse.Namespace) -> Result:
    from .study import plots, run_study, table

    found = run_study(args.out, seeds=args.seeds, scale=args.scale, workers=args.workers, quiet=args.quiet)
    (args.out / "study.json").write_text(json.dumps(found, indent=1) + "\n")
    plots(found, args.out / "study.svg")
    return Result(found, table(found))


def _add_analyze_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to write to")
    add("--data", type=Path, metavar="SHARDS", help="of lipstream-train prepare, with latents")
    add("--teacher", type=Path, nargs="+", metavar="FILE", help="weights of the teacher")
    add("--size", default="14b", help="of the teacher (default 14b)")
    add("--negative", type=Path, metavar="FILE", help="embedding of the negative prompt (default: 0)")
    add("--syncnet", default="drawn", metavar="FILE", help="syncnet_v2.model, or 'drawn' (default)")
    add("--codec", type=Path, metavar="FILE", help="decoder: taew2_1, or a checkpoint of lipstream-train")
    add("--micro", type=Path, metavar="STUDY", help="a folder of the study, in place of the options above")
    add("--clips", type=int, default=16, help="default 16")
    add("--steps", type=int, default=50, help="of the teacher (default 50)")
    add("--guidance", type=float, default=4.5, help="default 4.5")


@needs_extra("lipstream-train analyze", "training")
def _analyze(args: argparse.Namespace) -> Result:
    from .analyze import analyze_files, analyze_micro, describe, write

    options: dict[str, Any] = {"clips": args.clips, "steps": args.steps, "guidance": args.guidance}
    if args.micro:
        found = analyze_micro(args.micro, **options)
    elif args.data and args.teacher and args.codec:
        files = {"negative": args.negative, "syncnet": args.syncnet, "codec": args.codec}
        found = analyze_files(args.data, args.teacher, args.size, **files, **options)
    else:
        raise ConfigError("analyze needs --data, --teacher and --codec, or --micro")
    write(found, args.out)
    return Result(found, describe(found))


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--student", default="14b", choices=("14b", "1.3b"), help="default 14b")


@needs_extra("lipstream-train plan", "training")
def _plan(args: argparse.Namespace) -> Result:
    from .plan import markdown, table

    return Result({"rows": table(args.student)}, markdown(args.student))


DISTIL = Command(
    "distil",
    "one stage of distillation",
    "Trains a teacher (stage teacher), a causal student by diffusion forcing (forcing), or a student on its own output "
    "by Sync-Window DMD with SyncNet's reward (self_forcing). An interrupted run continues from its last checkpoint "
    "in OUT. On several GPUs: python -m lipstream_training.launch --nproc-per-node 8 distil ...",
    _add_distil_arguments,
    _distil,
)
STUDY = Command(
    "study",
    "the miniature study",
    "Trains the paper's variants at toy size, three seeds each, and compares them. A second run in the same folder "
    "reuses what is finished. About 40 minutes on two cores.",
    _add_study_arguments,
    _study,
)
ANALYZE = Command(
    "analyze",
    "times at which a teacher forms sync and fidelity",
    "Measures a teacher's prediction of the clean clip along its denoising, with and without guidance, and two steps "
    "with and without; recommends a landing time and a guidance window for a student. Writes OUT/analysis.json and "
    "OUT/analysis.svg.",
    _add_analyze_arguments,
    _analyze,
)
PLAN = Command(
    "plan",
    "memory and hours of stage 2 on 4 to 64 GPUs",
    "Counts weights, memory of a rank and arithmetic of stage 2; nothing is allocated.",
    _add_plan_arguments,
    _plan,
)
