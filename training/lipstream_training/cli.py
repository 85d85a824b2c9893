"""The command `lipstream-train`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

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


def _syncnet(args: argparse.Namespace) -> None:
    from .syncnet.train import SyncNetRecipe, train_syncnet

    train_syncnet(args.out, SyncNetRecipe())
    print(f"{args.out}: for --syncnet of lipstream evaluate and lipstream-train prepare")


def _sample(args: argparse.Namespace) -> None:
    from .data.sample import draw_sample

    for path in draw_sample(args.out, person=args.person, video_text=args.video_text, speech_text=args.speech_text):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
