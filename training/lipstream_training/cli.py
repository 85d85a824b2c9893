"""The command `lipstream-train`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from lipstream.errors import LipStreamError

VIDEO_TEXT = "Good morning. This is how I spoke before anybody put other words on my lips."
SPEECH_TEXT = (
    "Hello! My lips are drawn, chunk by chunk, by a small causal diffusion model, in two steps. "
    "It runs on an ordinary processor, faster than I can talk. Wow."
)


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


def _sample(args: argparse.Namespace) -> None:
    from .data.sample import draw_sample

    for path in draw_sample(args.out, person=args.person, video_text=args.video_text, speech_text=args.speech_text):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
