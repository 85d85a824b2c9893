"""`lipstream run` and `lipstream demo`: dub a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import samples
from ..errors import BundleCorruptError, ConfigError, OutputError
from .command import Command, Result, add_trust, face_at

if TYPE_CHECKING:
    from ..dub import DubResult


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", metavar="VIDEO", help="video or picture with a face, in any format that FFmpeg reads")
    add("audio", metavar="AUDIO", nargs="?", help="file with the voice (default: the sound of VIDEO)")
    add("-o", "--output", required=True, metavar="OUT", help=".mp4, .mov, .m4v or .mkv")
    add(
        "--codec",
        choices=("h264", "hevc", "av1", "prores"),
        help="video codec (default: h264; hevc for a video of more than 8 bits; prores for one with alpha, into .mov)",
    )
    add("--crf", type=int, help="quality, 0 (best) to 51 (default 18); not of prores")
    add("--preset", help="speed, ultrafast to veryslow (default veryfast); not of prores")
    add("--lossless", action="store_true", help="FFV1 in .mkv: samples outside the mouth stay bit-identical")
    add("--background", metavar="RRGGBB", help="colour behind a video with alpha, as 00ff00 (default black)")
    add("--strict", action="store_true", help="fail in place of warnings about the result")
    add(
        "--sandbox",
        action="store_true",
        help="for files from strangers: decode them in processes with limits on memory, without network, by common "
        "codecs only",
    )
    add("--sheet", metavar="PNG", help="also write a contact sheet of the result")
    add(
        "--sign",
        nargs=2,
        type=Path,
        metavar=("CERT", "KEY"),
        help="add a signed C2PA manifest to OUT that declares it generated: certificate chain and private key, PEM. "
        "Needs lipstream[provenance]",
    )
    add("--sign-algorithm", default="es256", metavar="ALG", help="signature algorithm of the key (default es256)")
    add("--no-sidecar", action="store_true", help="without --sign: write no OUT.provenance.json")
    add("--bundle", default="tiny", help="folder or shipped name (default tiny)")
    add_trust(parser)
    add("--backend", help="onnxruntime, tensorrt or torch (default: tensorrt for engines, else onnxruntime)")
    add("--provider", help="for backend onnxruntime: cpu (default), or with lipstream[gpu] cuda or tensorrt")
    add("--threads", type=int, default=0, help="CPU threads (default: chosen for this CPU)")
    add("--seed", type=int, default=42, help="seed of the noise; equal seeds give equal videos (default 42)")
    add(
        "--face-policy",
        choices=("hold", "bypass", "raise"),
        default="hold",
        help="frames without a face: keep its last position, leave the frame unchanged, or stop with an error "
        "(default hold)",
    )
    add("--face-at", metavar="X,Y", help="pixel on or near the wanted face (default: the largest face)")
    add(
        "--doubtful",
        choices=("paint", "bypass"),
        default="paint",
        help="frames in which something covers the mouth, or the face is a flat drawing: generate the mouth in any "
        "case, or leave the frame unchanged (default paint)",
    )
    add(
        "--insightface",
        type=Path,
        metavar="FOLDER",
        help="detect faces with InsightFace's models (buffalo_l), as the upstream system does; they are for "
        "non-commercial research only. Needs: pip install insightface",
    )
    add(
        "--upstream",
        action="store_true",
        help="do everything as the upstream system does, to compare with its output: frames and their colour, sound, "
        "crops, pasting, length, and two encodings of H.264, crf 13 and 18, unless --codec, --crf, --preset or "
        "--lossless is given; for bundles of released weights. Sound not of 16 kHz needs lipstream[upstream]",
    )
    add(
        "--noise",
        choices=("torch",),
        help="torch: as the upstream script draws it on a CPU (default: by seed and chunk)",
    )


def _run(args: argparse.Namespace) -> Result:
    from .. import provenance
    from ..atomic import write_files
    from ..engine import LipSyncEngine
    from ..face import FaceOptions
    from ..media.contact_sheet import contact_sheet

    _check_files(args, provenance.sidecar(Path(args.output)))
    signer = None
    if args.sign:
        certificate, key = args.sign
        signer = provenance.Signer(certificate, key, Path(args.output), args.sign_algorithm)
    elif not args.no_sidecar:
        provenance.check_sidecar(Path(args.output))
    model = provenance.model(args.bundle)
    engine = LipSyncEngine.load(
        args.bundle,
        backend=args.backend,
        threads=args.threads,
        provider=args.provider,
        trust=args.trust or None,
    )
    if provenance.model(args.bundle) != model:  # later on it may be replaced
        raise BundleCorruptError(f"{args.bundle} was replaced while it was loaded", fix="run the command again")
    sources = provenance.Sources(Path(args.video), Path(args.audio) if args.audio else None)

    def finish(finished: Path, frames: int) -> None:
        """Sign the result; write what belongs beside it, and give it its name when all of it is there."""
        output = Path(args.output)
        beside: dict[Path, bytes] = {}
        if signer or not args.no_sidecar:
            made = provenance.record(model, sources)
            if signer:
                signer.sign(finished, output.name, made)
            else:
                beside[provenance.sidecar(output)] = provenance.sidecar_of(finished, made)
        if args.sheet:
            beside[Path(args.sheet)] = contact_sheet(Path(args.video), finished, frames=frames, sandbox=args.sandbox)
        write_files(beside)

    with _Progress(hidden=args.quiet) as progress:
        result = engine.dub(
            args.video,
            args.audio,
            args.output,
            face=FaceOptions(args.face_policy, face_at(args.face_at), args.doubtful, args.insightface, args.upstream),
            seed=args.seed,
            noise=args.noise,
            codec=args.codec,
            **_quality(args),
            lossless=args.lossless,
            background=_colour(args.background),
            strict=args.strict,
            progress=progress,
            finish=finish,
            sandbox=args.sandbox,
        )
    args.written.append(result.output)
    report = summary(result)
    return Result(report, describe(report), result.warnings)


def _quality(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `LipSyncEngine.dub`: those given; where none is, the upstream system's in its mode."""
    given = {name: value for name in ("crf", "preset") if (value := getattr(args, name)) is not None}
    if args.upstream and not (given or args.codec or args.lossless):
        return {"first_crf": 13, "crf": 18, "preset": "medium"}
    return given


def _check_files(args: argparse.Namespace, sidecar: Path) -> None:
    """Check before the dub, which takes long, that no file that it writes is one that it reads, or writes, too."""
    from ..atomic import check_target
    from ..media import ensure_distinct

    taken = [Path(file) for file in (args.video, args.audio, *(args.sign or ())) if file]
    written = [Path(args.output)] + [sidecar] * (not args.sign and not args.no_sidecar)
    written += [Path(args.sheet)] if args.sheet else []
    for file in written:
        ensure_distinct(file, *taken)
        taken.append(file)
    if not args.sheet:
        return
    sheet = Path(args.sheet)
    try:
        check_target(sheet)
    except OSError as error:
        raise OutputError(f"{sheet} cannot be written: {error.strerror}", expected="the name of a PNG file") from error
    if not sheet.parent.is_dir():
        raise OutputError(f"no such folder: {sheet.parent}", fix="create it first")


def _colour(text: str | None) -> tuple[int, int, int]:
    if text is None:
        return 0, 0, 0
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError as error:
        raise ConfigError(f"--background {text!r}", expected="six hexadecimal digits, such as 00ff00") from error
    return red, green, blue


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--out", default="out", metavar="DIR", help="folder for demo.mp4, .json and .png (default out)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: chosen for this CPU)")


def _demo(args: argparse.Namespace) -> Result:
    from ..atomic import write_file, write_files
    from ..engine import LipSyncEngine
    from ..media.contact_sheet import contact_sheet

    out = Path(args.out)
    numbers, sheet = out / "demo.json", out / "demo.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file(numbers, b"{}\n")
    except OSError as error:
        raise OutputError(f"{numbers} cannot be written: {error.strerror}", fix="choose another folder") from error
    engine = LipSyncEngine.load("tiny", threads=args.threads)
    with _Progress(hidden=args.quiet) as progress:
        result = engine.dub(samples.FACE, samples.SPEECH, out / "demo.mp4", preset="veryfast", progress=progress)
    args.written.append(result.output)
    report = summary(result)
    picture = contact_sheet(samples.FACE, result.output, frames=result.frames)
    write_files({sheet: picture, numbers: (json.dumps(report, indent=2) + "\n").encode()})
    text = f"{describe(report)}\n{sheet}: source above, result below; {numbers}: these numbers"
    return Result(report, text, result.warnings)


def summary(result: DubResult) -> dict[str, Any]:
    """`result` for JSON, with the peak memory of this process in MiB (None where it cannot be measured)."""
    from ..backends.base import cores

    peak = _peak_memory()
    return {
        "output": str(result.output),
        "frames": result.frames,
        "bypassed": result.bypassed,
        "held": result.held,
        "doubtful": result.doubtful,
        "first_face": result.first_face,
        "damaged": result.damaged,
        "warnings": list(result.warnings),
        "notes": list(result.notes),
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
    """A `summary` as text."""
    text = (
        f"{report['output']}: {report['frames']} frames in {report['seconds']:.1f} s = {report['fps']:.1f} fps on "
        f"{report['cores']} cores, real-time factor {report['real_time_factor']:.2f}\n"
        f"  first frame after {report['first_frame_seconds']:.2f} s"
    )
    if report["peak_memory_mib"]:
        text += f", peak memory {report['peak_memory_mib']:.0f} MiB"
    if report["first_face"]:
        text += f"\n  first face at frame {report['first_face']}; the frames before it are unchanged"
    if report["bypassed"] > report["first_face"]:
        text += f"\n  {report['bypassed']} frames are unchanged"
    return "\n  ".join([text, *report["notes"]])


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


RUN = Command("run", "dub a video file with a voice", "Make the face in VIDEO speak AUDIO.", _add_run_arguments, _run)
DEMO = Command("demo", "dub the bundled sample", "Dub the bundled sample.", _add_demo_arguments, _demo)
