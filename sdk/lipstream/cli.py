"""The command `lipstream`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, LipStreamError, MissingExtraError, OutputError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, the error's own (see `lipstream.errors`), or 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        result: dict[str, Any] | None = args.run(args)
    except LipStreamError as error:
        return _fail(args, error.code, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(args, "interrupted", "interrupted: nothing was written", INTERRUPTED)
    if args.json and result is not None:
        print(json.dumps(result, indent=2))
    return 0


def _fail(args: argparse.Namespace, code: str, message: str, status: int) -> int:
    print(f"lipstream: {message}", file=sys.stderr)
    if args.json:
        print(json.dumps({"error": {"code": code, "message": message, "exit_status": status}}))
    return status


def build_parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(prog="lipstream", description="Put new speech on a person's lips in a video.")
    parser.add_argument("--version", action="version", version=f"lipstream {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "dub a video file with a voice", "Make the face in VIDEO speak AUDIO.")
    run.add_argument("video", metavar="VIDEO", help="video or picture with a face, in any format FFmpeg reads")
    run.add_argument("audio", metavar="AUDIO", nargs="?", help="file with the voice; the video's own sound if left out")
    run.add_argument("-o", "--output", required=True, metavar="OUT", help=".mp4, .mov, .m4v or .mkv")
    run.add_argument("--crf", type=int, default=18, help="quality of the H.264 file, 0 (best) to 51 (default 18)")
    run.add_argument("--preset", default="veryfast", help="x264 preset, ultrafast to veryslow (default veryfast)")
    run.add_argument("--lossless", action="store_true", help="FFV1 in .mkv: untouched pixels stay equal to the bit")
    run.add_argument("--sheet", metavar="PNG", help="also write a contact sheet of the result")
    _engine_options(run)

    demo = _command(commands, "demo", _demo, "dub the bundled sample", "Dub the sample that ships with LipStream.")
    demo.add_argument(
        "-o", "--out", default="out", metavar="DIR", help="folder for demo.mp4, .json and .png (default out)"
    )
    demo.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")

    inspect = _command(commands, "inspect", _inspect, "describe a bundle", "Check a bundle and say what is in it.")
    inspect.add_argument(
        "bundle", metavar="BUNDLE", nargs="?", default="tiny", help="folder or shipped name (default tiny)"
    )

    export = _command(
        commands,
        "export",
        _export,
        "checkpoint to bundle",
        "Turn a checkpoint into a bundle. Needs lipstream[export].",
    )
    export.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="folder that lipstream-train wrote")
    export.add_argument("-o", "--output", required=True, type=Path, metavar="BUNDLE", help="folder to write")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], dict[str, Any] | None], short: str, long: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=short, description=long)
    command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    command.set_defaults(run=run)
    return command


def _engine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--bundle", default="tiny", help="folder or shipped name (default tiny)")
    command.add_argument("--backend", default="onnxruntime", help="onnxruntime (default) or another installed one")
    command.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    command.add_argument("--seed", type=int, default=42, help="of the noise; equal seeds, equal videos (default 42)")
    command.add_argument(
        "--face-policy",
        choices=("hold", "bypass", "raise"),
        default="hold",
        help="frames without the face: go on with its last place, leave the frame as it is, or stop with an error",
    )
    command.add_argument("--face-at", metavar="X,Y", help="pixel near the wanted face (default: the largest)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from .contact_sheet import contact_sheet
    from .engine import LipSyncEngine
    from .media import ensure_distinct

    if args.sheet:
        ensure_distinct(args.sheet, args.video, args.audio or args.video, args.output)
        if not Path(args.sheet).parent.is_dir():
            raise OutputError(f"no such folder: {Path(args.sheet).parent}", fix="make it first")
    engine = LipSyncEngine.load(args.bundle, backend=args.backend, threads=args.threads)
    with _Progress(hidden=args.quiet) as progress:
        result = engine.dub(
            args.video,
            args.audio,
            args.output,
            face_policy=args.face_policy,
            face_at=_point(args.face_at),
            seed=args.seed,
            crf=args.crf,
            preset=args.preset,
            lossless=args.lossless,
            progress=progress,
        )
    if args.sheet:
        contact_sheet(Path(args.video), result.output, Path(args.sheet))
    report = summary(result)
    if not args.json:
        print(describe(report))
    return report


def _demo(args: argparse.Namespace) -> dict[str, Any]:
    from .contact_sheet import contact_sheet
    from .engine import LipSyncEngine

    out, sample = Path(args.out), Path(__file__).parent / "sample"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made: {error.strerror}", fix="choose another folder") from error
    engine = LipSyncEngine.load("tiny", threads=args.threads)
    with _Progress() as progress:
        result = engine.dub(
            sample / "face.mp4", sample / "speech.wav", out / "demo.mp4", preset="veryfast", progress=progress
        )
    contact_sheet(sample / "face.mp4", result.output, out / "demo.png")
    report = summary(result)
    (out / "demo.json").write_text(json.dumps(report, indent=2) + "\n")
    if not args.json:
        print(describe(report))
        print(f"{out / 'demo.png'}: source above, result below; {out / 'demo.json'}: these numbers")
    return report


def _inspect(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from .bundle import Bundle

    bundle = Bundle.load(args.bundle)
    report = {"path": str(bundle.path), **asdict(bundle.manifest)}
    if not args.json:
        m, g = bundle.manifest, bundle.manifest.geometry
        size = sum(file["bytes"] for file in m.files.values())
        print(f"{m.model.get('name', bundle.path.name)}: {m.model.get('description', '')}")
        millions, licence = m.model.get("parameters", 0) / 1e6, m.model.get("licence", "unknown")
        print(f"  {millions:.1f} M parameters, {m.precision}, licence {licence}")
        print(
            f"  crops {g.crop_size[1]}x{g.crop_size[0]}, window {g.window} with sink {g.sink}, times {list(m.t_list)}"
        )
        print(f"  {size / 1e6:.1f} MB in {len(m.files)} files, all as the manifest says:")
        for name, file in m.files.items():
            print(f"    {file['bytes']:>10} {file['sha256'][:12]} {name}")
    return report


def _export(args: argparse.Namespace) -> None:
    try:
        from lipstream_export.command import export  # the other rooms need torch
    except ImportError as error:
        raise MissingExtraError(
            f"lipstream export needs the module {error.name!r}, which is not installed",
            fix="pip install 'lipstream[export]'",
        ) from error
    export(args.checkpoint, args.output, json_output=args.json)  # prints what came of it


def summary(result: Any) -> dict[str, Any]:
    """A `DubResult` as plain numbers, with the peak memory of this process in MiB."""
    import resource

    from .backends.base import cores

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "output": str(result.output),
        "frames": result.frames,
        "bypassed": result.bypassed,
        "width": result.width,
        "height": result.height,
        "seconds": round(result.seconds, 3),
        "fps": round(result.fps, 2),
        "real_time_factor": round(result.real_time_factor, 3),
        "first_frame_seconds": round(result.first_frame, 3),
        "peak_memory_mib": round(peak / 2**20, 1),
        "cores": cores(),
        "stages_seconds": {name: round(seconds, 3) for name, seconds in result.stages.items()},
    }


def describe(report: dict[str, Any]) -> str:
    text = (
        f"{report['output']}: {report['frames']} frames in {report['seconds']:.1f} s = {report['fps']:.1f} fps on "
        f"{report['cores']} cores, real-time factor {report['real_time_factor']:.2f}\n"
        f"  first frame after {report['first_frame_seconds']:.2f} s, peak memory {report['peak_memory_mib']:.0f} MiB"
    )
    if report["bypassed"]:
        text += f"\n  {report['bypassed']} frames show no face and are as in the source"
    return text


def _point(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--face-at {text!r}", expected="two numbers in pixels, e.g. --face-at 640,200") from error
    return x, y


class _Progress:
    """A progress bar in frames on standard error, drawn once the total is known."""

    def __init__(self, *, hidden: bool = False) -> None:
        self._hidden = hidden
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="frame", disable=self._hidden)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


if __name__ == "__main__":
    sys.exit(main())
