"""The command `lipstream`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ..bundle.plans import Plans
from ..bundle.validate import PRECISIONS
from ..errors import ConfigError, LipStreamError, MissingExtraError, OutputError

USAGE, BUG, SIGNALLED = 2, 70, 128


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status.

    0; 1 where `doctor` finds something broken; the error's own (see `lipstream.errors`); 2 for wrong usage; 70 for a
    bug; 128 + n when signal n ended it (Ctrl-C: 130). With --json each of these prints JSON.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    report = _Report("--json" in arguments)
    try:
        with _signals_raise():
            args = build_parser().parse_args(arguments)
            result: dict[str, Any] | None = args.run(args, report)
    except LipStreamError as error:
        return report.fail(error.code, str(error), error.exit_code)
    except _UsageError as error:
        return report.fail("usage", str(error), USAGE)
    except _Signalled as signalled:
        name = "interrupted" if signalled.number == signal.SIGINT else "terminated"
        return report.fail(name, f"{name}: {report.state()}", SIGNALLED + signalled.number)
    except MemoryError:
        return report.fail("memory", f"there is not enough memory; {report.state()}", BUG)
    except Exception as error:
        traceback.print_exc()
        return report.fail("internal", f"a bug in LipStream, please report it: {type(error).__name__}: {error}", BUG)
    if args.json and result is not None:
        print(json.dumps(result, indent=2))
    return 0 if result is None or result.get("ok", True) else 1


class _Report:
    """How a command that failed says so. Attributes: written: what it has finished so far."""

    def __init__(self, json_output: bool) -> None:
        self._json = json_output
        self.written: list[Path] = []

    def state(self) -> str:
        return f"{', '.join(map(str, self.written))} is complete" if self.written else "nothing was written"

    def fail(self, code: str, message: str, status: int) -> int:
        print(f"lipstream: {message}", file=sys.stderr)
        if self._json:
            print(json.dumps({"error": {"code": code, "message": message, "exit_status": status}}))
        return status


class _UsageError(Exception):
    """The command line cannot be understood."""


class _Signalled(BaseException):
    """Somebody wants the process to end. Passes every handler of errors, so that all is cleaned up on the way."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `_Signalled` in the main thread."""

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        raise _Signalled(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        before = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not the main thread: signals are not ours
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}\n  fix: {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = _Parser(prog="lipstream", description="Put new speech on a person's lips in a video.")
    parser.add_argument("--version", action="version", version=f"lipstream {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "dub a video file with a voice", "Make the face in VIDEO speak AUDIO.")
    run.add_argument("video", metavar="VIDEO", help="video or picture with a face, in any format FFmpeg reads")
    run.add_argument("audio", metavar="AUDIO", nargs="?", help="file with the voice; the video's own sound if left out")
    run.add_argument("-o", "--output", required=True, metavar="OUT", help=".mp4, .mov, .m4v or .mkv")
    run.add_argument("--crf", type=int, default=18, help="quality of the H.264 file, 0 (best) to 51 (default 18)")
    run.add_argument("--preset", default="veryfast", help="x264 preset, ultrafast to veryslow (default veryfast)")
    run.add_argument("--lossless", action="store_true", help="FFV1 in .mkv: untouched pixels stay equal to the bit")
    run.add_argument("--strict", action="store_true", help="an error where there would be warnings about the result")
    run.add_argument("--sheet", metavar="PNG", help="also write a contact sheet of the result")
    run.add_argument(
        "--sign",
        nargs=2,
        type=Path,
        metavar=("CERT", "KEY"),
        help="put a signed C2PA manifest into OUT that says it is generated: certificate chain and private key, PEM. "
        "Needs lipstream[provenance]",
    )
    run.add_argument("--sign-algorithm", default="es256", metavar="ALG", help="of the key (default es256)")
    run.add_argument("--no-sidecar", action="store_true", help="without --sign: no OUT.provenance.json either")
    _engine_options(run)

    demo = _command(commands, "demo", _demo, "dub the bundled sample", "Dub the sample that ships with LipStream.")
    demo.add_argument(
        "-o", "--out", default="out", metavar="DIR", help="folder for demo.mp4, .json and .png (default out)"
    )
    demo.add_argument("--threads", type=int, default=0, help="CPU threads (default: as many as pay)")

    inspect = _command(commands, "inspect", _inspect, "describe a bundle", "Check a bundle and say what is in it.")
    inspect.add_argument(
        "bundle", metavar="BUNDLE", nargs="?", default="tiny", help="folder or shipped name (default tiny), or a file"
    )
    inspect.add_argument(
        "--layers", action="store_true", help="of plans: what TensorRT made of the graphs; needs the GPU"
    )

    export = _command(
        commands,
        "export",
        _export,
        "checkpoint to bundle",
        "Turn a checkpoint, or a float32 bundle, into a bundle of some precision. Needs lipstream[export].",
    )
    export.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        nargs="?",
        help="folder that lipstream-train wrote, or a bundle (folder or name); or give released files, below",
    )
    export.add_argument("-o", "--output", type=Path, metavar="BUNDLE", help="folder to write")
    files = export.add_argument_group("released files, in place of SOURCE")
    files.add_argument("--model", choices=("1.3b", "14b"), help="size of the student")
    files.add_argument(
        "--student", type=Path, nargs="+", metavar="FILE", help="merged; or a base model, then adapters and deltas"
    )
    files.add_argument("--vae", type=Path, metavar="FILE", help="Wan2.1_VAE")
    files.add_argument("--taehv", type=Path, metavar="FILE", help="taew2_1")
    files.add_argument("--encoder", choices=("wan", "taehv"), default="wan", help="of video (default wan, as released)")
    files.add_argument(
        "--decoder", choices=("taehv", "wan"), default="taehv", help="of video (default taehv, as released)"
    )
    files.add_argument("--wav2vec", type=Path, metavar="FOLDER", help="wav2vec2-base-960h")
    files.add_argument(
        "--lookback", type=float, default=3.2, metavar="S", help="sound a stream hears before each chunk (default 3.2)"
    )
    files.add_argument(
        "--lookahead", type=float, default=0.08, metavar="S", help="and after it: a delay (default 0.08)"
    )
    files.add_argument("--text", type=Path, metavar="FILE", help="the prompt's embedding")
    files.add_argument("--mask", type=Path, metavar="PICTURE", help="white is kept, black is generated")
    files.add_argument("--check", action="store_true", help="read headers, say whether the set is complete, stop")
    export.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp32 (default) for ONNX Runtime on a CPU; bf16 and fp8 for engines",
    )
    export.add_argument(
        "--no-parity",
        action="store_true",
        help="do not run the graphs against PyTorch before the bundle takes its name: it takes twice the memory",
    )
    fp8 = export.add_argument_group("how fp8 is made")
    fp8.add_argument(
        "--calibrate",
        nargs=2,
        type=Path,
        metavar=("VIDEO", "AUDIO"),
        help="what the layers' inputs are measured on (default: the bundled sample)",
    )
    fp8.add_argument("--chunks", type=int, default=6, help="chunks of it, 12 frames each (default 6)")
    fp8.add_argument(
        "--method", choices=("amax", "percentile"), default="amax", help="of an input's range (default amax)"
    )
    fp8.add_argument("--fp8-attention", action="store_true", help="the self-attention in fp8, too (default bf16)")
    fp8.add_argument(
        "--budget",
        type=float,
        default=0.02,
        help="relative error of the velocity that fp8 may add; layers beyond it stay in bf16 (default 0.02)",
    )
    embed = _command(
        commands,
        "text-embed",
        _text_embed,
        "prompt to embedding, once",
        "Compute the embedding of the prompt with UMT5, once, for lipstream export --text. Needs lipstream[export].",
    )
    embed.add_argument(
        "encoder", metavar="UMT5", type=Path, help="google/umt5-xxl: a Hugging Face folder, or the original's one file"
    )
    embed.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of the tokenizer (default: the encoder's)")
    embed.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help=".safetensors to write")
    embed.add_argument("--prompt", default="a person talking", help="default: what the released scripts take")

    build = _command(
        commands,
        "build",
        _build,
        "bundle to TensorRT engines",
        "Build TensorRT engines from a bundle that was exported in bf16 or fp8. Needs a GPU of the kind that will run "
        "them, and lipstream[tensorrt]: pip install 'lipstream[tensorrt]'. What was built before comes from the cache.",
    )
    build.add_argument("bundle", metavar="BUNDLE", nargs="?", help="folder that lipstream export wrote")
    build.add_argument("--recipe", metavar="RECIPE", help="name of a shipped one, or a TOML file; --list names them")
    build.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder to write")
    build.add_argument("--cache", type=Path, metavar="DIR", help="folder of built plans (default ~/.cache/lipstream)")
    build.add_argument("--dry-run", action="store_true", help="parse, name what TensorRT cannot take, build nothing")
    build.add_argument("--list", action="store_true", help="list the shipped recipes")
    build.add_argument("--quiet", action="store_true", help="no progress bar")

    verify = _command(
        commands,
        "verify",
        _verify,
        "engines against PyTorch",
        "Run the engines of a bundle on the inputs stored with it, compare with what PyTorch computed, and write the "
        "result into its manifest. Needs the GPU, and lipstream[tensorrt].",
    )
    verify.add_argument("bundle", metavar="BUNDLE", help="folder that lipstream build wrote")
    verify.add_argument("--quiet", action="store_true", help="no progress bar")

    evaluate = _command(
        commands,
        "evaluate",
        _evaluate,
        "results against references, in numbers and pictures",
        "Judge results of one or more systems: lips against sound, pictures against their references. Writes "
        "OUT/index.html and OUT/evaluation.json. Videos of any frame rate and size; a result that is early or late "
        "against its reference is shifted back for the comparison, and the shift is reported. "
        "Needs lipstream[evaluate].",
    )
    evaluate.add_argument(
        "systems", metavar="[NAME=]RESULTS", nargs="+", help="a video or a folder of videos, for each system"
    )
    evaluate.add_argument(
        "--references",
        required=True,
        type=Path,
        metavar="PATH",
        help="the video, or the folder of the videos, they dubbed",
    )
    evaluate.add_argument(
        "--audio",
        type=Path,
        metavar="PATH",
        help="what should be said, a file or folder (default: each result's sound)",
    )
    evaluate.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder for the page and the numbers")
    evaluate.add_argument("--published", action="store_true", help="the rows that the paper publishes, beside ours")
    weights = evaluate.add_argument_group("weights, none of which may be shipped; without them a metric is left out")
    weights.add_argument(
        "--syncnet",
        metavar="FILE",
        help="for Sync-C and Sync-D: syncnet_v2.model; or 'drawn', a small one for drawn faces",
    )
    weights.add_argument("--lpips", type=Path, metavar="FILE", help="for LPIPS: torchvision's AlexNet")
    weights.add_argument("--arcface", type=Path, metavar="FILE", help="for CSIM: a face recogniser, ONNX")
    weights.add_argument("--inception", type=Path, metavar="FILE", help="for FID: Inception of torch-fidelity")
    weights.add_argument("--i3d", type=Path, metavar="FILE", help="for FVD: I3D of cd-fvd")
    evaluate.add_argument("--workers", type=int, default=0, help="processes (default: one to a core)")
    evaluate.add_argument("--quiet", action="store_true", help="no progress bar")

    serve = _command(
        commands,
        "serve",
        _serve,
        "live sessions over WebSocket and WebRTC, with a page to try them",
        "Serve live sessions: sound comes in, pictures and sound go out (docs/protocol.md). Prints the address of a "
        "page to try it with. Needs lipstream[server].",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine alone)"
    )
    serve.add_argument("--port", type=int, default=8000, help="default 8000")
    serve.add_argument("--token", default=os.environ.get("LIPSTREAM_TOKEN", ""), help="that clients must give")
    serve.add_argument(
        "--origin", action="append", default=[], help="of another site's pages that may connect; repeatable"
    )
    serve.add_argument("--max-sessions", type=int, default=0, help="at once (default: measured at the start)")
    serve.add_argument("--idle-limit", type=float, default=120, help="seconds without sound that end a session")
    serve.add_argument("--total-limit", type=float, default=3600, help="seconds that end any session")
    serve.add_argument("--drain", type=float, default=30, help="seconds that sessions may go on after SIGTERM")
    serve.add_argument("--upload-mb", type=int, default=64, help="largest video that a client may upload")
    serve.add_argument("--bitrate", type=int, default=1500, help="kbit/s of a WebRTC picture (default 1500)")
    serve.add_argument(
        "--ice-server", action="append", default=[], metavar="URL", help="STUN or TURN server for WebRTC; repeatable"
    )
    serve.add_argument("--bundle", default="tiny", help="folder or shipped name (default tiny)")
    serve.add_argument("--backend", help="default: the one that the bundle is for")
    serve.add_argument("--threads", type=int, default=0, help="CPU threads (default: as many as pay)")

    doctor = _command(
        commands,
        "doctor",
        _doctor,
        "what is installed and what is missing",
        "Say what this machine can do, what is missing, and the command for it. Worst first.",
    )
    doctor.add_argument("bundle", metavar="BUNDLE", nargs="?", help="also whether this bundle runs here")
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace, _Report], dict[str, Any] | None],
    short: str,
    long: str,
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=short, description=long)
    command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    command.set_defaults(run=run)
    return command


def _engine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--bundle", default="tiny", help="folder or shipped name (default tiny)")
    command.add_argument("--backend", help="default: tensorrt for engines, else onnxruntime; torch")
    command.add_argument("--provider", help="of onnxruntime: cpu (default), or with lipstream[gpu] cuda or tensorrt")
    command.add_argument("--threads", type=int, default=0, help="CPU threads (default: as many as pay)")
    command.add_argument("--seed", type=int, default=42, help="of the noise; equal seeds, equal videos (default 42)")
    command.add_argument(
        "--face-policy",
        choices=("hold", "bypass", "raise"),
        default="hold",
        help="frames without the face: go on with its last place, leave the frame as it is, or stop with an error",
    )
    command.add_argument("--face-at", metavar="X,Y", help="pixel near the wanted face (default: the largest)")
    command.add_argument(
        "--insightface",
        type=Path,
        metavar="FOLDER",
        help="find faces by InsightFace's models (buffalo_l), as the released system; they are for non-commercial "
        "research only. Needs: pip install insightface",
    )
    command.add_argument(
        "--compat",
        action="store_true",
        help="crop, paste and take the video's frames as the released system does, to compare with its pictures; "
        "for bundles of released weights",
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _run(args: argparse.Namespace, report: _Report) -> dict[str, Any]:
    from .. import provenance
    from ..engine import LipSyncEngine

    if args.sheet:
        _check_sheet(args)
    signer = None
    if args.sign:
        certificate, key = args.sign
        signer = provenance.Signer(certificate, key, Path(args.output), args.sign_algorithm)
    engine = LipSyncEngine.load(args.bundle, backend=args.backend, threads=args.threads, provider=args.provider)
    with _Progress(hidden=args.quiet) as progress:
        result = engine.dub(
            args.video,
            args.audio,
            args.output,
            face_policy=args.face_policy,
            face_at=_point(args.face_at),
            insightface=args.insightface,
            compat=args.compat,
            seed=args.seed,
            crf=args.crf,
            preset=args.preset,
            lossless=args.lossless,
            strict=args.strict,
            progress=progress,
        )
    report.written.append(result.output)
    if signer or not args.no_sidecar:
        made = provenance.record(args.bundle, Path(args.video), Path(args.audio) if args.audio else None)
        if signer:
            signer.sign(result.output, made)
        else:
            report.written.append(provenance.write_sidecar(result.output, made))
    if args.sheet:
        from ..media.contact_sheet import contact_sheet

        contact_sheet(Path(args.video), result.output, Path(args.sheet), frames=result.frames)
    return _say(args, summary(result))


def _check_sheet(args: argparse.Namespace) -> None:
    """Before the dub, which takes longer."""
    from ..media import ensure_distinct

    sheet = Path(args.sheet)
    ensure_distinct(sheet, args.video, args.audio or args.video, args.output)
    if sheet.is_dir():
        raise OutputError(f"{sheet} is a directory", expected="the name of a PNG file")
    if not sheet.parent.is_dir():
        raise OutputError(f"no such folder: {sheet.parent}", fix="make it first")


def _demo(args: argparse.Namespace, report: _Report) -> dict[str, Any]:
    from ..atomic import write_file
    from ..engine import LipSyncEngine
    from ..media.contact_sheet import contact_sheet

    out, sample = Path(args.out), Path(__file__).parent / "sample"
    numbers = out / "demo.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file(numbers, b"{}\n")
    except OSError as error:
        raise OutputError(f"{numbers} cannot be written: {error.strerror}", fix="choose another folder") from error
    engine = LipSyncEngine.load("tiny", threads=args.threads)
    with _Progress() as progress:
        result = engine.dub(
            sample / "face.mp4", sample / "speech.wav", out / "demo.mp4", preset="veryfast", progress=progress
        )
    report.written.append(result.output)
    contact_sheet(sample / "face.mp4", result.output, out / "demo.png", frames=result.frames)
    found = _say(args, summary(result))
    write_file(numbers, (json.dumps(found, indent=2) + "\n").encode())
    if not args.json:
        print(f"{out / 'demo.png'}: source above, result below; {numbers}: these numbers")
    return found


def _say(args: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Print what came of a dub, for people; warnings go to standard error in any case."""
    for warning in found["warnings"]:
        print(f"lipstream: warning: {warning}", file=sys.stderr)
    if not args.json:
        print(describe(found))
    return found


def _inspect(args: argparse.Namespace, _: _Report) -> dict[str, Any]:
    from ..bundle import Bundle

    if Path(args.bundle).is_file():
        return _inspect_weights(args)
    bundle = Bundle.load(args.bundle)
    report: dict[str, Any] = {"path": str(bundle.path), **bundle.manifest.fields()}
    if args.layers:
        report["layers"] = _engines().layers(bundle)
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
        if m.plans:
            print(describe_plans(m.plans))
        for name, engine in report.get("layers", {}).items():
            kinds = ", ".join(f"{count} {kind}" for kind, count in engine["precisions"].items())
            print(f"  {name}: {engine['layers']} layers ({kinds}), {engine['fused_attention']} fused attentions")
    return report


@contextmanager
def _extra(what: str, extra: str) -> Iterator[None]:
    """A failing import inside raises MissingExtraError, which begins with `what` and names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{what} the module {error.name!r}, which is not installed", fix=f"pip install 'lipstream[{extra}]'"
        ) from error


def _inspect_weights(args: argparse.Namespace) -> dict[str, Any]:
    """What a file of weights is, by its header."""
    with _extra("looking at files of weights needs", "export"):
        from lipstream_models.released import describe
    found: dict[str, Any] = describe(Path(args.bundle))
    if not args.json:
        size = f" ({found['size']})" if found["size"] else ""
        print(f"{found['path']}: {found['kind']}{size}")
        print(f"  {found['tensors']} tensors, {found['parameters']:,} parameters, {found['bytes'] / 1e9:.2f} GB")
    return found


def describe_plans(plans: Plans) -> str:
    """How a bundle's plans were built and whether anybody has verified them, in two lines."""
    gpu = f"on {plans.gpu['name']}" if plans.gpu else "without a GPU: to check the graphs, not to run"
    verified = plans.verified
    said = "not verified yet" if verified is None else "verified" if verified.get("passed") else "verified: WRONG"
    return (
        f"  plans of recipe {plans.recipe}, ring {plans.ring}, TensorRT {plans.tensorrt}, {gpu}\n"
        f"  {said} (lipstream verify)"
    )


def _export(args: argparse.Namespace, _: _Report) -> dict[str, Any] | None:
    with _extra("lipstream export needs", "export"):
        from lipstream_export.command import Calibration, export  # needs torch
        from lipstream_models.released.release import Release
    given = dict(zip(("video", "audio"), args.calibrate or (), strict=False))
    calibration = Calibration(
        chunks=args.chunks, method=args.method, budget=args.budget, attention=args.fp8_attention, **given
    )
    source: Any = args.source
    if source is None:
        wanted = ("model", "student", "wav2vec", "text", "mask")
        if missing := [f"--{name}" for name in wanted if not getattr(args, name)]:
            raise _UsageError(f"lipstream export needs SOURCE, or {', '.join(missing)}\n  fix: lipstream export --help")
        names = (*wanted, "vae", "taehv", "encoder", "decoder", "lookback", "lookahead")
        source = Release(**{**{name: getattr(args, name) for name in names}, "student": tuple(args.student)})
        if args.check:
            found = source.check()
            if not args.json:
                print("\n".join(["complete:", *(f"  {path}: {kind}" for path, kind in found.items())]))
            return {"files": found}
    if args.output is None:
        raise _UsageError("lipstream export needs -o BUNDLE\n  fix: lipstream export --help")
    export(  # prints what came of it
        source,
        args.output,
        precision=args.precision,
        calibration=calibration,
        parity=not args.no_parity,
        json_output=args.json,
    )
    return None


def _text_embed(args: argparse.Namespace, report: _Report) -> dict[str, Any]:
    with _extra("lipstream text-embed needs", "export"):
        import ftfy  # noqa: F401
        from lipstream_models.released.text import write_text
    found: dict[str, Any] = write_text(args.encoder, args.prompt, args.output, tokenizer=args.tokenizer)
    report.written.append(args.output)
    if not args.json:
        print(f"{found['output']}: {found['shape']} of {found['prompt']!r}")
    return found


def _engines() -> Any:
    """The commands of `lipstream_engines`, which needs `onnx`."""
    with _extra("engines need", "tensorrt"):
        from lipstream_engines import command
    return command


def _build(args: argparse.Namespace, report: _Report) -> dict[str, Any]:
    engines = _engines()
    if args.list:
        found = {recipe.name: recipe.description for recipe in engines.list_recipes()}
        if not args.json:
            print("\n".join(f"{name:16} {description}" for name, description in found.items()))
        return {"recipes": found}
    missing = [name for name, value in (("BUNDLE", args.bundle), ("--recipe", args.recipe)) if not value]
    if missing or not (args.output or args.dry_run):
        raise _UsageError(f"lipstream build needs {', '.join(missing or ['-o'])}\n  fix: lipstream build --help")
    result: dict[str, Any]
    if args.dry_run:
        result = engines.dry_run(args.bundle, args.recipe)
    else:
        result = engines.build(args.bundle, args.recipe, args.output, cache=args.cache, quiet=args.quiet)
        report.written.append(args.output)
    if not args.json:
        print(engines.describe_dry_run(result) if args.dry_run else engines.describe_build(result))
    return result


def _verify(args: argparse.Namespace, _: _Report) -> dict[str, Any]:
    engines = _engines()
    result: dict[str, Any] = engines.verify(args.bundle, quiet=args.quiet)
    if not args.json:
        print(engines.describe_verify(result))
    return result


def _evaluate(args: argparse.Namespace, report: _Report) -> dict[str, Any]:
    with _extra("lipstream evaluate needs", "evaluate"):
        from lipstream_evaluate.command import Judges, evaluate
    named = [text.partition("=") for text in args.systems]
    systems = {name if sign else Path(name).stem: Path(path if sign else name) for name, sign, path in named}
    if len(systems) < len(named):
        raise _UsageError("two results have the same name\n  fix: give each one its own, as in NAME=RESULTS")
    networks = {name: path for name in ("lpips", "arcface", "inception", "i3d") if (path := getattr(args, name))}
    found: dict[str, Any]
    found, text = evaluate(
        systems,
        args.references,
        args.audio,
        Judges(args.syncnet, networks),
        args.output,
        paper=args.published,
        workers=args.workers,
        quiet=args.quiet,
    )
    if args.output:
        report.written.append(args.output)
    if not args.json:
        print(text)
        if args.output:
            print(f"{args.output / 'index.html'}: pictures, and the mouths over time")
    else:
        for metric, why in found["left_out"].items():
            print(f"lipstream: warning: {metric} is left out: {why}", file=sys.stderr)
    return found


def _serve(args: argparse.Namespace, _: _Report) -> None:
    with _extra("serving", "server"):
        from ..server.command import serve
        from ..server.state import Settings

    serve(
        Settings(
            host=args.host,
            port=args.port,
            token=args.token,
            origins=tuple(args.origin),
            max_sessions=args.max_sessions,
            idle_limit=args.idle_limit,
            total_limit=args.total_limit,
            drain=args.drain,
            upload_mb=args.upload_mb,
            bitrate=args.bitrate,
            ice_servers=tuple(args.ice_server),
            bundle=args.bundle,
            backend=args.backend,
            threads=args.threads,
        )
    )


def _doctor(args: argparse.Namespace, _: _Report) -> dict[str, Any]:
    from .doctor import describe, examine

    findings = examine(args.bundle)
    if not args.json:
        print(describe(findings))
    return findings


def summary(result: Any) -> dict[str, Any]:
    """A `DubResult` as plain numbers, with the peak memory of this process in MiB (None where it cannot be asked)."""
    from ..backends.base import cores

    peak = _peak_memory()
    return {
        "output": str(result.output),
        "frames": result.frames,
        "bypassed": result.bypassed,
        "first_face": result.first_face,
        "damaged": result.damaged,
        "warnings": list(result.warnings),
        "width": result.width,
        "height": result.height,
        "seconds": round(result.seconds, 3),
        "fps": round(result.fps, 2),
        "real_time_factor": round(result.real_time_factor, 3),
        "first_frame_seconds": round(result.first_frame, 3),
        "peak_memory_mib": peak and round(peak / 2**20, 1),
        "cores": cores(),
        "stages_seconds": {name: round(seconds, 3) for name, seconds in result.stages.items()},
    }


def _peak_memory() -> int | None:
    """Bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(report: dict[str, Any]) -> str:
    text = (
        f"{report['output']}: {report['frames']} frames in {report['seconds']:.1f} s = {report['fps']:.1f} fps on "
        f"{report['cores']} cores, real-time factor {report['real_time_factor']:.2f}\n"
        f"  first frame after {report['first_frame_seconds']:.2f} s"
    )
    if report["peak_memory_mib"]:
        text += f", peak memory {report['peak_memory_mib']:.0f} MiB"
    if report["first_face"]:
        text += f"\n  the first face comes with frame {report['first_face']}; the frames before it are as in the source"
    if report["bypassed"] > report["first_face"]:
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
