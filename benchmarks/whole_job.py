"""The whole job, from video and speech to a dubbed file: what is run, on which cores, and how it is compared.

The first part of benchmarks/throughput.py, which describes it. It is a separate module so that the measured processes
load only what they run.
"""

from __future__ import annotations

import argparse
import inspect
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipstream import LipSyncEngine, samples
from lipstream.errors import ConfigError
from lipstream.media import FPS, VideoReader, read_audio
from tqdm import tqdm

from . import transcode
from .clips import make_clip
from .common import cores, in_fresh_process, memory_mib, spread

OURS, EAGER, TRANSCODE = "onnxruntime", "torch", "transcode"
SAMPLE = "384x320"
SIZES = {SAMPLE: (384, 320), "1280x720": (1280, 720), "1920x1080": (1920, 1080)}
"""Width and height of the videos, in pixels; the first is the shipped sample."""
_DEFAULTS = {name: option.default for name, option in inspect.signature(LipSyncEngine.dub).parameters.items()}
PRESET, CRF = str(_DEFAULTS["preset"]), int(_DEFAULTS["crf"])
"""With which `LipSyncEngine.dub` encodes unless told otherwise."""
Run = dict[str, Any]
_DIT = ("denoise", "context")


@dataclass(frozen=True)
class Case:
    """One row of the result: a video on some cores. Attributes: jobs: what is measured, in turns."""

    size: str
    video: Path
    cores: int
    jobs: tuple[str, ...]


def cases(videos: dict[str, Path], counts: list[int]) -> list[Case]:
    """All rows; `counts` of cores and the videos' sizes ascend."""
    sizes = [*videos]
    found = []
    for size, video in videos.items():
        for count in counts:
            with_eager = size in (sizes[0], sizes[-1]) and count == counts[-1]
            found.append(Case(size, video, count, (OURS, TRANSCODE, EAGER) if with_eager else (OURS, TRANSCODE)))
    return found


def sources(video: Path | None, sizes: Iterable[str], folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The videos by size, smallest first, and which of them are still to be made: in `folder`."""
    if video:
        info = VideoReader(video).info
        return {f"{info.width}x{info.height}": video}, []
    made = [size for size in SIZES if size in sizes and size != SAMPLE]
    return ({SAMPLE: samples.FACE} if SAMPLE in sizes else {}) | {size: folder / f"{size}.mp4" for size in made}, made


def available(wanted: Iterable[int]) -> list[int]:
    """The numbers of cores that can be measured here, ascending; prints which cannot.

    Raises:
        ConfigError: none can.
    """
    here = cores()
    for count in sorted({count for count in wanted if count > here}):
        print(f"not measured on {count} cores: this process may use {here}")
    counts = sorted({count for count in wanted if count <= here})
    if not counts:
        raise ConfigError(f"this process may use {here} cores", fix="give --cores a smaller number")
    return counts


def dub(bundle: str, backend: str, threads: int, video: Path, audio: Path, preset: str) -> Run:
    """One whole job in this process; seconds are wall time, memory is in MiB."""
    start = time.perf_counter()
    engine = LipSyncEngine.load(bundle, backend=backend, threads=threads)
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = engine.dub(video, audio, Path(folder) / "out.mp4", preset=preset, crf=CRF)
    return {
        "fps": result.fps,
        "seconds": result.seconds,
        "frames": result.frames,
        "size": [result.width, result.height],
        "load_seconds": loaded - start,
        "first_frame_seconds": result.first_frame,
        "stages_seconds": result.stages,
        "dit_share": sum(result.stages[name] for name in _DIT) / result.seconds,
        "peak_memory_mib": memory_mib("VmHWM"),
    }


def perform(case: Case, job: str, args: argparse.Namespace, frames: int) -> Run:
    """One run of one job in a fresh process on the case's cores."""
    if job == TRANSCODE:
        given = (case.video, args.audio, frames, args.preset, CRF)
        return in_fresh_process(transcode.measure, *given, on_cores=case.cores)
    given_dub = (args.bundle, job, case.cores, case.video, args.audio, args.preset)
    return in_fresh_process(dub, *given_dub, on_cores=case.cores)


def summarise(runs: list[Run]) -> Run:
    """Spread of every number over the runs; values that are equal in all runs appear once."""
    first = runs[0]
    result: Run = {"frames": first["frames"]}
    for key in ("fps", "seconds", "load_seconds", "first_frame_seconds", "dit_share", "peak_memory_mib"):
        if key in first:
            result[key] = spread([run[key] for run in runs])
    if "stages_seconds" in first:
        names = first["stages_seconds"]
        result["stages_seconds"] = {name: spread([run["stages_seconds"][name] for run in runs]) for name in names}
    return result


def compare(runs: dict[str, list[Run]]) -> Run:
    """One row: the dub's numbers, those of the other jobs, and the ratios of their speeds, formed within each round."""

    def faster(job: str) -> dict[str, float]:
        return spread([ours["fps"] / other["fps"] for ours, other in zip(runs[OURS], runs[job], strict=True)])

    found = summarise(runs[OURS])
    found |= {"share_of_transcode": faster(TRANSCODE), "transcode": summarise(runs[TRANSCODE])}
    if EAGER in runs:
        found |= {"times_faster_than_eager": faster(EAGER), "eager": summarise(runs[EAGER])}
    return found


def rounds(table: list[Case], count: int) -> Iterator[tuple[Case, str]]:
    """What to run, one after the other: every job of every case, `count` times, every other time in reverse order."""
    for number in range(count):
        for case in table:
            for job in case.jobs[:: -1 if number % 2 else 1]:
                yield case, job


def measure(args: argparse.Namespace) -> dict[Case, Run]:
    """Make the clips and run every job that the options of benchmarks/throughput.py ask for; the rows."""
    counts = available(args.cores)
    sound, rate = read_audio(args.audio)
    frames = -(-len(sound) * FPS // rate)
    with tempfile.TemporaryDirectory() as folder:
        videos, made = sources(args.video, args.sizes, Path(folder))
        table = cases(videos, counts)
        found: dict[Case, dict[str, list[Run]]] = {case: {job: [] for job in case.jobs} for case in table}
        steps = [*rounds(table, args.runs)]
        with tqdm(total=len(made) + len(steps), desc="runs", unit="run", disable=None) as bar:
            for size in made:
                bar.set_postfix_str(f"clip {size}")
                make_clip(videos[size], *SIZES[size], frames)
                bar.update()
            for case, job in steps:
                bar.set_postfix_str(f"{job} {case.size}, cores: {case.cores}")
                found[case][job].append(perform(case, job, args, frames))
                bar.update()
    return {case: compare(runs) for case, runs in found.items()}


def describe(case: Case, found: Run) -> str:
    fps, share, transcoded = found["fps"], found["share_of_transcode"], found["transcode"]
    stages = ", ".join(f"{name} {seconds['median']:.2f}" for name, seconds in found["stages_seconds"].items())
    eager = found.get("times_faster_than_eager")
    return (
        f"{case.size}, cores: {case.cores}: {fps['median']:.1f} fps ({fps['min']:.1f} to {fps['max']:.1f}), "
        f"{share['median']:.0%} of a transcode's {transcoded['fps']['median']:.1f} "
        f"({share['min']:.0%} to {share['max']:.0%}), "
        + (f"{eager['median']:.2f} times eager PyTorch ({eager['min']:.2f} to {eager['max']:.2f}), " if eager else "")
        + f"first frame after {found['first_frame_seconds']['median']:.2f} s, DiT {found['dit_share']['median']:.0%}, "
        f"peak memory {found['peak_memory_mib']['median']:.0f} MiB, of the transcode "
        f"{transcoded['peak_memory_mib']['median']:.0f}\n  seconds: {stages}"
    )
