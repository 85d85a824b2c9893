"""`lipstream build` and `lipstream verify`. Imports neither onnx nor TensorRT before a command runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lipstream.cli import Command, Result, UsageError, needs_extra


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", nargs="?", help="folder that lipstream export wrote")
    add("--recipe", metavar="RECIPE", help="name of a shipped recipe, or a TOML file; see --list")
    add("-o", "--output", type=Path, metavar="OUT", help="folder to write")
    add("--cache", type=Path, metavar="DIR", help="folder of built plans (default ~/.cache/lipstream)")
    add("--dry-run", action="store_true", help="only parse, and list the nodes that TensorRT does not support")
    add("--list", action="store_true", help="list the shipped recipes")


def _build(args: argparse.Namespace) -> Result:
    with needs_extra("lipstream build", "tensorrt"):
        from . import command
    if args.list:
        recipes = {recipe.name: recipe.description for recipe in command.list_recipes()}
        text = "\n".join(f"{name:16} {description}" for name, description in recipes.items())
        return Result({"recipes": recipes}, text)
    missing = [name for name, value in (("BUNDLE", args.bundle), ("--recipe", args.recipe)) if not value]
    if missing or not (args.output or args.dry_run):
        raise UsageError(f"lipstream build needs {', '.join(missing or ['-o'])}", fix="lipstream build --help")
    if args.dry_run:
        parsed = command.dry_run(args.bundle, args.recipe)
        return Result(parsed, command.describe_dry_run(parsed))
    built = command.build(args.bundle, args.recipe, args.output, cache=args.cache, quiet=args.quiet)
    args.written.append(args.output)
    return Result(built, command.describe_build(built))


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that lipstream build wrote")


def _verify(args: argparse.Namespace) -> Result:
    with needs_extra("lipstream verify", "tensorrt"):
        from . import command
    found: dict[str, Any] = command.verify(args.bundle, quiet=args.quiet)
    return Result(found, command.describe_verify(found), ok=found.get("ok", True))


BUILD = Command(
    "build",
    "bundle to TensorRT engines",
    "Build TensorRT engines from a bundle that was exported in bf16 or fp8. Needs a GPU of the kind that will run "
    "them, and lipstream[tensorrt]: pip install 'lipstream[tensorrt]'. Plans that were built before come from a cache.",
    _add_build_arguments,
    _build,
)
VERIFY = Command(
    "verify",
    "engines against PyTorch",
    "Run the engines of a bundle on the inputs stored with it, compare with what PyTorch computed, and write the "
    "result into its manifest. Needs the GPU, and lipstream[tensorrt].",
    _add_verify_arguments,
    _verify,
)
