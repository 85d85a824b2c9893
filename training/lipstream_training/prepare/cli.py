"""`lipstream-train prepare`. Imports no torch before the command runs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from lipstream.cli import Command, Result, needs_extra
from lipstream.errors import ConfigError

from .filters import Filters


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to write to")
    add("inputs", type=Path, nargs="*", metavar="VIDEOS", help="videos, folders, or lists (.txt)")
    add("--drawn", type=int, default=0, metavar="N", help="also N clips of drawn people")
    add("--student", default="1.3b", help="student whose crops are cut: 1.3b (default), 14b (the same) or tiny")
    add("--syncnet", metavar="FILE", help="drop what is out of sync: syncnet_v2.model, or 'drawn' for drawn people")
    add("--encode", type=Path, metavar="CHECKPOINT", help="also latents, audio and text features of this student")
    released = parser.add_argument_group("or latents and features by the released system's files, all four")
    released.add_argument("--vae", type=Path, metavar="FILE", help="Wan2.1_VAE")
    released.add_argument("--wav2vec", type=Path, metavar="FOLDER", help="wav2vec2-base-960h")
    released.add_argument("--text", type=Path, metavar="FILE", help="the prompt's embedding")
    released.add_argument("--mask", type=Path, metavar="PICTURE", help="white is kept, black is generated")
    add("--shard", default="1/1", metavar="I/N", help="one of N machines: every N-th source, into OUT/part-I-of-N")
    add("--shard-clips", type=int, default=64, metavar="N", help="clips in a shard (default 64)")
    add("--min-clips", type=int, default=1, metavar="N", help="fail if OUT has fewer clips at the end (default 1)")
    add("--seed", type=int, default=0, help="of drawn clips (default 0)")
    filters = parser.add_argument_group("what a clip must have; 0 turns a filter off")
    for field in dataclasses.fields(Filters):
        help_text = f"{field.metadata['help']} (default {field.default:g})"
        filters.add_argument(f"--{field.name}", type=float, default=field.default, help=help_text)
    add("--workers", type=int, default=0, help="processes (default: one per core)")


@needs_extra("lipstream-train prepare", "training")
def _run(args: argparse.Namespace) -> Result:
    from .command import prepare
    from .report import describe
    from .settings import Released, Settings

    files = {name: getattr(args, name) for name in ("vae", "wav2vec", "text", "mask")}
    if any(files.values()) and not all(files.values()):
        raise ConfigError("--vae, --wav2vec, --text and --mask go together")
    settings = Settings(
        student=args.student,
        syncnet=args.syncnet,
        encode=Released(**files) if all(files.values()) else args.encode,
        shard=args.shard_clips,
        seed=args.seed,
        filters=Filters(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Filters)}),
    )
    part, of = _shard(args.shard)
    found = prepare(
        args.out if of == 1 else args.out / f"part-{part}-of-{of}",
        args.inputs,
        settings,
        drawn=args.drawn,
        shard=(part, of),
        min_clips=args.min_clips,
        workers=args.workers,
        quiet=args.quiet,
    )
    return Result(found, describe(found))


def _shard(text: str) -> tuple[int, int]:
    part, slash, of = text.partition("/")
    if not (slash and part.isdecimal() and of.isdecimal()):
        raise ConfigError(f"--shard {text!r}", expected="i/n, such as 1/4; --shard-clips N for clips in a shard")
    return int(part), int(of)


PREPARE = Command(
    "prepare",
    "videos to shards of clips",
    "Cuts videos into clips of 81 aligned crops with their sound and a reference from another part of the same video, "
    "drops what cannot be trained on, and writes WebDataset shards, OUT/index.json, and OUT/report.html with pictures "
    "of what was kept and dropped and why. A run that was killed continues where it stopped, and gives the same "
    "shards. Given a finished folder, it appends the videos that are not in it.",
    _add_arguments,
    _run,
)
