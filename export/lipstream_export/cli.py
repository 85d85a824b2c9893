"""`lipstream export` and `lipstream text-embed`. Imports no torch before a command runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from lipstream.cli import Command, Result, UsageError, needs_extra
from lipstream.precision import PRECISIONS

from .settings import LOOKAHEAD, LOOKBACK, Calibration, Method


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        nargs="?",
        help="folder that lipstream-train wrote, or a bundle (folder or name); or give released files, below",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="BUNDLE", help="folder to write")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp32 (default) for ONNX Runtime on a CPU; bf16 and fp8 for engines",
    )
    parser.add_argument(
        "--no-parity",
        action="store_true",
        help="write the bundle without comparing its graphs with PyTorch, which takes twice the memory",
    )
    files = parser.add_argument_group("released files, in place of SOURCE")
    add = files.add_argument
    add("--model", choices=("1.3b", "14b"), help="size of the student")
    add("--student", type=Path, nargs="+", metavar="FILE", help="merged; or a base model, then adapters and deltas")
    add("--vae", type=Path, metavar="FILE", help="Wan2.1_VAE")
    add("--taehv", type=Path, metavar="FILE", help="taew2_1")
    add("--encoder", choices=("wan", "taehv"), default="wan", help="video encoder (default wan, as released)")
    add("--decoder", choices=("taehv", "wan"), default="taehv", help="video decoder (default taehv, as released)")
    add("--wav2vec", type=Path, metavar="FOLDER", help="wav2vec2-base-960h")
    add(
        "--lookback",
        type=float,
        default=LOOKBACK,
        metavar="S",
        help="seconds of sound before each chunk that the audio encoder gets (default %(default)s)",
    )
    add(
        "--lookahead",
        type=float,
        default=LOOKAHEAD,
        metavar="S",
        help="seconds after it, which delay the stream (default %(default)s)",
    )
    add("--text", type=Path, metavar="FILE", help="the prompt's embedding")
    add("--mask", type=Path, metavar="PICTURE", help="white is kept, black is generated")
    add("--check", action="store_true", help="read only headers, and report whether the set is complete")
    fp8 = parser.add_argument_group("fp8 calibration")
    fp8.add_argument(
        "--calibrate",
        nargs=2,
        type=Path,
        metavar=("VIDEO", "AUDIO"),
        help="video and audio to measure the layers' inputs on (default: the bundled sample)",
    )
    fp8.add_argument(
        "--chunks",
        type=int,
        default=Calibration.chunks,
        help="chunks of the dub to calibrate on, 12 frames each (default %(default)s)",
    )
    fp8.add_argument(
        "--method",
        choices=get_args(Method),
        default=Calibration.method,
        help="how an input's range is measured (default %(default)s)",
    )
    fp8.add_argument("--fp8-attention", action="store_true", help="also the self-attention in fp8 (default bf16)")
    fp8.add_argument(
        "--budget",
        type=float,
        default=Calibration.budget,
        help="relative error of the velocity that fp8 may add; layers beyond it stay in bf16 (default %(default)s)",
    )


def _export(args: argparse.Namespace) -> Result:
    with needs_extra("lipstream export", "export"):
        from lipstream_models.released.release import Release

        from .command import export, summary

    given = dict(zip(("video", "audio"), args.calibrate or (), strict=False))
    calibration = Calibration(
        chunks=args.chunks, method=args.method, budget=args.budget, attention=args.fp8_attention, **given
    )
    help_command = "lipstream export --help"
    if args.calibrate and args.precision != "fp8":
        raise UsageError("--calibrate without --precision fp8", fix="add --precision fp8, or leave out --calibrate")
    source: Any = args.source
    wanted = ("model", "student", "wav2vec", "text", "mask")
    if source is not None:
        if surplus := [f"--{name}" for name in (*wanted, "vae", "taehv", "check") if getattr(args, name)]:
            raise UsageError(
                f"SOURCE together with {', '.join(surplus)}, for released files", fix="give one of the two"
            )
    else:
        if missing := [f"--{name}" for name in wanted if not getattr(args, name)]:
            raise UsageError(f"lipstream export needs SOURCE, or {', '.join(missing)}", fix=help_command)
        names = (*wanted, "vae", "taehv", "encoder", "decoder", "lookback", "lookahead")
        source = Release(**{**{name: getattr(args, name) for name in names}, "student": tuple(args.student)})
        if args.check:
            found = source.check()
            return Result({"files": found}, "\n".join(["complete:", *(f"  {path}: {found[path]}" for path in found)]))
    if args.output is None:
        raise UsageError("lipstream export needs -o BUNDLE", fix=help_command)
    result = export(
        source,
        args.output,
        precision=args.precision,
        calibration=calibration,
        parity=not args.no_parity,
        quiet=args.quiet,
    )
    return Result(result, summary(result))


def _add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "encoder",
        metavar="UMT5",
        type=Path,
        help="google/umt5-xxl: a Hugging Face folder, or the released system's single file",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="the tokenizer's folder (default: UMT5)")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help=".safetensors to write")
    parser.add_argument("--prompt", help="default: the prompt of the released scripts")


def _text_embed(args: argparse.Namespace) -> Result:
    with needs_extra("lipstream text-embed", "export"):
        import ftfy  # noqa: F401
        from lipstream_models.released.text import PROMPT, write_text
    prompt = PROMPT if args.prompt is None else args.prompt
    found: dict[str, Any] = write_text(args.encoder, prompt, args.output, tokenizer=args.tokenizer)
    args.written.append(args.output)
    return Result(found, f"{found['output']}: {found['shape']} of {found['prompt']!r}")


EXPORT = Command(
    "export",
    "checkpoint to bundle",
    "Turn a checkpoint, or a float32 bundle, into a bundle of the given precision. Needs lipstream[export].",
    _add_export_arguments,
    _export,
)
TEXT_EMBED = Command(
    "text-embed",
    "prompt to embedding, once",
    "Compute the embedding of the prompt with UMT5, once, for lipstream export --text. Needs lipstream[export].",
    _add_embed_arguments,
    _text_embed,
)
