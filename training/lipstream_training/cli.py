"""The command `lipstream-train`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


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
    tiny.add_argument("--clips", type=int, help="clips to draw (default 2000)")
    args = parser.parse_args(argv)

    try:
        from dataclasses import replace

        from .tiny import TinyRecipe, train_tiny
    except ModuleNotFoundError as error:
        print(f"lipstream-train needs {error.name}\n  fix: pip install 'lipstream[training]'", file=sys.stderr)
        return 4
    recipe = TinyRecipe()
    train_tiny(args.out, replace(recipe, clips=args.clips) if args.clips else recipe)
    print(f"the student is in {args.out / 'checkpoint'}; next: lipstream export {args.out / 'checkpoint'} -o BUNDLE")
    return 0


if __name__ == "__main__":
    sys.exit(main())
