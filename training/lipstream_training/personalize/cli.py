"""`lipstream personalize`. Imports no torch before the command runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lipstream.cli import Command, Result, face_at, needs_extra


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", type=Path, metavar="VIDEO", help="the person speaking, 20 seconds to 5 minutes, with its own sound")
    add("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    add(
        "--bundle",
        type=Path,
        default=Path("tiny"),
        help="student to start from: an fp32 bundle, folder or shipped name, or a checkpoint (default tiny)",
    )
    add("--minutes", type=float, default=5.0, metavar="M", help="time for all of it (default 5)")
    add(
        "--steps",
        type=int,
        metavar="N",
        help="steps of the decoder's training, 0 to leave it as it is (default: as the time allows)",
    )
    add(
        "--student-steps",
        type=int,
        metavar="N",
        help="steps of the student's training, likewise; with both 0 only the frame that shows the person is chosen",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="with --steps and --student-steps, equal seeds give equal bundles (default 0)",
    )
    add("--face-at", metavar="X,Y", help="pixel on or near the person's face, where the video shows several")
    add("--sheet", type=Path, metavar="PNG", help="also write a picture of true mouths, before and after")
    add("--keep", action="store_true", help="write the bundle also where the part held out did not get better")


@needs_extra("lipstream personalize", "export,training")
def _run(args: argparse.Namespace) -> Result:
    from .command import Settings, describe, personalize

    settings = Settings(
        minutes=args.minutes,
        steps=args.steps,
        student_steps=args.student_steps,
        seed=args.seed,
        face_at=face_at(args.face_at),
        sheet=args.sheet,
        keep=args.keep,
    )
    found = personalize(args.video, args.output, args.bundle, settings, quiet=args.quiet)
    args.written.append(args.output)
    return Result(found, describe(found), found["warnings"])


PERSONALIZE = Command(
    "personalize",
    "tune a student to one person",
    "Tune the student and the decoder of a bundle by a video of a person, so that the person's own mouth "
    "comes out. The last third of the video is held out and measured before and after; where that does not get better, "
    "nothing is written. Needs lipstream[export,training].",
    _add_arguments,
    _run,
)
