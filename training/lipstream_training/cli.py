"""The command `lipstream-train`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipstream.errors import ConfigError, LipStreamError

VIDEO_TEXT = "Good morning. This is how I spoke before anybody put other words on my lips."
SPEECH_TEXT = (
    "Hello! My lips are drawn, chunk by chunk, by a small causal diffusion model, in two steps. "
    "It runs on an ordinary processor, faster than I can talk. Wow."
)


_FILTERS = {
    "face": "least height of the face, pixels of the source (default 80)",
    "jump": "most that a face may move from frame to frame, in its own heights (default 0.25)",
    "sharpness": "least variance of the Laplacian of the face at 128 pixels (default 12)",
    "others": "size of another face over the speaker's from which on there is more than one speaker (default 0.35)",
    "loudness": "least peak of the loudness, 0 to 1 (default 0.01)",
    "speech": "least share of frames with sound (default 0.2)",
    "mouth": "least standard deviation of the lip gap, in eye distances (default 0.004)",
    "offset": "most frames by which the mouth may be early or late (default 1)",
    "confidence": "least Sync-C (default 0)",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lipstream-train", description="Train students of Lip Forcing.")
    commands = parser.add_subparsers(dest="command", required=True)
    tiny = commands.add_parser(
        "tiny",
        help="train the tiny student from nothing",
        description="Draws its own data and trains the tiny student, about an hour on two cores. A stage that is done "
        "is found again by the next run in the same folder. Then: lipstream export OUT/checkpoint -o BUNDLE",
    )
    tiny.add_argument("out", type=Path, metavar="OUT", help="folder for the data, the stages and the checkpoint")
    tiny.add_argument("--clips", type=int, help="clips to draw (default 2400)")
    tiny.set_defaults(run=_tiny)
    prepare = commands.add_parser(
        "prepare",
        help="videos to shards of clips",
        description="Cuts videos into clips of 81 aligned crops with their sound and a reference from another part of "
        "the same video, drops what cannot be trained on, and writes WebDataset shards, OUT/index.json, and "
        "OUT/report.html with pictures of what was kept and dropped and why. A run that was killed goes on where it "
        "was, and gives the same shards.",
    )
    prepare.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    prepare.add_argument("inputs", type=Path, nargs="*", metavar="VIDEOS", help="videos, folders, or lists (.txt)")
    prepare.add_argument("--drawn", type=int, default=0, metavar="N", help="and N clips of drawn people")
    prepare.add_argument("--student", default="1.3b", help="whose crops: 1.3b (default), 14b (the same) or tiny")
    prepare.add_argument(
        "--syncnet", metavar="FILE", help="drop what is out of sync: syncnet_v2.model, or 'drawn' for drawn people"
    )
    prepare.add_argument(
        "--encode", type=Path, metavar="CHECKPOINT", help="also this student's latents, audio and text features"
    )
    released = prepare.add_argument_group("or latents and features by the released system's files, all four")
    released.add_argument("--vae", type=Path, metavar="FILE", help="Wan2.1_VAE")
    released.add_argument("--wav2vec", type=Path, metavar="FOLDER", help="wav2vec2-base-960h")
    released.add_argument("--text", type=Path, metavar="FILE", help="the prompt's embedding")
    released.add_argument("--mask", type=Path, metavar="PICTURE", help="white is kept, black is generated")
    prepare.add_argument("--shard", type=int, default=64, metavar="N", help="clips in a shard (default 64)")
    prepare.add_argument("--seed", type=int, default=0, help="of drawn clips (default 0)")
    filters = prepare.add_argument_group("what a clip must have; 0 turns a filter off")
    for name, help_text in _FILTERS.items():
        filters.add_argument(f"--{name}", type=float, help=help_text)
    prepare.add_argument("--workers", type=int, default=0, help="processes (default: one to a core)")
    prepare.add_argument("--json", action="store_true", help="print what came of it as JSON")
    prepare.set_defaults(run=_prepare)
    distil = commands.add_parser(
        "distil",
        help="one stage of distillation",
        description="Trains a teacher (stage teacher), a causal student by diffusion forcing (forcing), or one on its "
        "own work by Sync-Window DMD with SyncNet's reward (self_forcing). A run that was cut off goes on from its "
        "last checkpoint in OUT. On several GPUs: torchrun --nproc-per-node 8 -m lipstream_training.cli distil ...",
    )
    distil.add_argument("out", type=Path, metavar="OUT", help="folder for checkpoints, log and the result")
    distil.add_argument("--data", type=Path, required=True, metavar="SHARDS", help="of lipstream-train prepare")
    distil.add_argument("--recipe", type=Path, metavar="TOML", help="values of the fields below")
    for name, help_text in (
        ("init", "first weights: a folder of a stage, or released files, as of lipstream export (default: random)"),
        ("teacher", "of self_forcing"),
        ("critic", "first weights of the fake score (default: the teacher's)"),
    ):
        distil.add_argument(f"--{name}", type=Path, nargs="+", metavar="FILE", default=[], help=help_text)
    distil.add_argument("--negative", type=Path, metavar="FILE", help="embedding of the negative prompt (default: 0)")
    distil.add_argument("--syncnet", metavar="FILE", help="of the reward: syncnet_v2.model, or 'drawn'")
    distil.add_argument("--codec", type=Path, metavar="FILE", help="of reward and samples: taew2_1, or a checkpoint")
    distil.add_argument(
        "--base", type=Path, metavar="CHECKPOINT", help="codec, ear and masks for OUT/checkpoint, for lipstream export"
    )
    fields = distil.add_argument_group("recipe")
    for name, (default, help_text) in _recipe_fields().items():
        fields.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=f"{help_text} (default {default})")
    distil.set_defaults(run=_distil)
    study = commands.add_parser(
        "study",
        help="the miniature study",
        description="Trains the paper's variants at toy size, three seeds each, and compares them; what is done is "
        "found again by the next run in the same folder. About 40 minutes on two cores.",
    )
    study.add_argument("out", type=Path, metavar="OUT", help="folder for data, weights and results")
    study.add_argument("--seeds", type=int, default=3, help="default 3")
    study.add_argument("--scale", type=float, default=1.0, help="times the usual number of updates (default 1)")
    study.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    study.set_defaults(run=_study)
    analyze = commands.add_parser(
        "analyze",
        help="where a teacher finds sync and fidelity",
        description="Measures what a teacher takes for clean along its denoising, with and without guidance, and two "
        "steps with and without; says which landing time and guidance window a student should get. Writes "
        "OUT/analysis.json and OUT/analysis.svg.",
    )
    analyze.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    analyze.add_argument("--data", type=Path, metavar="SHARDS", help="of lipstream-train prepare, with latents")
    analyze.add_argument("--teacher", type=Path, nargs="+", metavar="FILE", help="its weights")
    analyze.add_argument("--size", default="14b", help="of the teacher (default 14b)")
    analyze.add_argument("--negative", type=Path, metavar="FILE", help="embedding of the negative prompt (default: 0)")
    analyze.add_argument("--syncnet", default="drawn", metavar="FILE", help="syncnet_v2.model, or 'drawn' (default)")
    analyze.add_argument("--codec", type=Path, metavar="FILE", help="decoder: taew2_1, or a checkpoint of ours")
    analyze.add_argument("--micro", type=Path, metavar="STUDY", help="in place of all these: a folder of the study")
    analyze.add_argument("--clips", type=int, default=16, help="default 16")
    analyze.add_argument("--steps", type=int, default=50, help="of the teacher (default 50)")
    analyze.add_argument("--guidance", type=float, default=4.5, help="default 4.5")
    analyze.set_defaults(run=_analyze)
    plan = commands.add_parser(
        "plan",
        help="memory and hours of stage 2 on 4 to 64 GPUs",
        description="Counts weights, memory of a rank and arithmetic of stage 2; nothing is allocated.",
    )
    plan.add_argument("--student", default="14b", choices=("14b", "1.3b"), help="default 14b")
    plan.set_defaults(run=_plan)
    syncnet = commands.add_parser(
        "syncnet",
        help="train the small SyncNet on drawn faces",
        description="Draws clips and trains the net that ships as 'drawn'; about a quarter of an hour on two cores.",
    )
    syncnet.add_argument("out", type=Path, metavar="FILE", help=".safetensors to write")
    syncnet.set_defaults(run=_syncnet)
    sample = commands.add_parser(
        "sample",
        help="draw a person and a voice to dub",
        description="Writes OUT/face.mp4, a drawn person of an identity that is never trained on, and OUT/speech.wav.",
    )
    sample.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    sample.add_argument("--person", type=int, default=19, help="number of the identity (default 19)")
    sample.add_argument("--video-text", default=VIDEO_TEXT, help="what the person in the video says")
    sample.add_argument("--speech-text", default=SPEECH_TEXT, help="what the voice says")
    sample.set_defaults(run=_sample)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except ModuleNotFoundError as error:
        print(f"lipstream-train needs {error.name}\n  fix: pip install 'lipstream[training]'", file=sys.stderr)
        return 4
    except LipStreamError as error:
        print(f"lipstream-train: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _tiny(args: argparse.Namespace) -> None:
    from .tiny import TinyRecipe, train_tiny

    recipe = TinyRecipe()
    train_tiny(args.out, replace(recipe, clips=args.clips) if args.clips else recipe)
    print(f"the student is in {args.out / 'checkpoint'}; next: lipstream export {args.out / 'checkpoint'} -o BUNDLE")


def _prepare(args: argparse.Namespace) -> None:
    from .prepare.command import prepare
    from .prepare.report import describe
    from .prepare.settings import Filters, Released, Settings

    given = {name: value for name in _FILTERS if (value := getattr(args, name)) is not None}
    files = {name: getattr(args, name) for name in ("vae", "wav2vec", "text", "mask")}
    if any(files.values()) and not all(files.values()):
        raise ConfigError("--vae, --wav2vec, --text and --mask go together")
    settings = Settings(
        student=args.student,
        syncnet=args.syncnet,
        encode=Released(**files) if all(files.values()) else args.encode,
        shard=args.shard,
        seed=args.seed,
        filters=Filters(**given),
    )
    found = prepare(args.out, args.inputs, settings, drawn=args.drawn, workers=args.workers)
    print(json.dumps(found, indent=2) if args.json else describe(found))


def _recipe_fields() -> dict[str, tuple[Any, str]]:
    """Name -> default and help. Of a module without torch, so that --help is quick."""
    from .distil.recipe import Recipe

    return {field.name: (field.default, str(field.metadata["help"])) for field in dataclasses.fields(Recipe)}


def _distil(args: argparse.Namespace) -> None:
    from .distil.command import Inputs, distil
    from .distil.recipe import load_recipe

    changes = {name: value for name in _recipe_fields() if (value := getattr(args, name)) is not None}
    inputs = Inputs(
        args.data,
        tuple(args.init),
        tuple(args.teacher),
        tuple(args.critic),
        args.negative,
        args.syncnet,
        args.codec,
        args.base,
    )
    distil(args.out, inputs, load_recipe(args.recipe, **changes))
    print(
        f"{args.out / 'student.safetensors'}; next: lipstream export --student it, or the next stage --init {args.out}"
    )


def _study(args: argparse.Namespace) -> None:
    from .distil.study import plots, run_study, table

    found = run_study(args.out, seeds=args.seeds, scale=args.scale, workers=args.workers)
    (args.out / "study.json").write_text(json.dumps(found, indent=1) + "\n")
    plots(found, args.out / "study.svg")
    print(table(found))


def _analyze(args: argparse.Namespace) -> None:
    from .distil.analyze import analyze_files, analyze_micro, describe, write

    options = {"clips": args.clips, "steps": args.steps, "guidance": args.guidance}
    if args.micro:
        found = analyze_micro(args.micro, **options)
    elif args.data and args.teacher and args.codec:
        files = {"negative": args.negative, "syncnet": args.syncnet, "codec": args.codec}
        found = analyze_files(args.data, args.teacher, args.size, **files, **options)
    else:
        raise ConfigError("analyze needs --data, --teacher and --codec, or --micro")
    write(found, args.out)
    print(describe(found))


def _plan(args: argparse.Namespace) -> None:
    from .distil.plan import markdown

    print(markdown(args.student))


def _syncnet(args: argparse.Namespace) -> None:
    from .syncnet import SyncNetRecipe, train_syncnet

    train_syncnet(args.out, SyncNetRecipe())
    print(f"{args.out}: for --syncnet of lipstream evaluate and lipstream-train prepare")


def _sample(args: argparse.Namespace) -> None:
    from .data.sample import draw_sample

    for path in draw_sample(args.out, person=args.person, video_text=args.video_text, speech_text=args.speech_text):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
