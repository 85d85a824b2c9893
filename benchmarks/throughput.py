"""Speed of the whole job, from video and speech to a dubbed file.

Each run is `LipSyncEngine.dub` in a fresh process, our backend and PyTorch's in turns: frames per second, seconds to
the first frame, seconds per stage, the DiT's share of the time, and the process's peak memory. Then the passes alone,
in one process and on the same inputs: one chunk by our backend, the same chunk by PyTorch (eager, same bundle, same
number of threads), and so on; their velocities must agree before any time counts. Without --video and --audio the
sample that ships with LipStream is dubbed.

The passes also run in PyTorch with the structure of the released code (benchmarks/upstream.py). The machine's ceilings
are measured in the same process, and each graph's time is given as a share of the bound that follows from them and
from its counted operations (benchmarks/roofline.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lipstream import LipSyncEngine, samples
from lipstream.backends.base import Array
from lipstream.bundle import Bundle
from lipstream.errors import ParityError
from numpy.typing import NDArray
from tqdm import tqdm

from .common import in_fresh_process, main, memory_mib, parser, positive, spread, write

OURS, EAGER, UPSTREAM = "onnxruntime", "torch", "upstream"
TOLERANCE = 1e-4
_DIT = ("denoise", "context")


def dub(bundle: str, backend: str, threads: int, video: Path, audio: Path) -> dict[str, Any]:
    """One whole job in this process; seconds are wall time, memory is in MiB."""
    start = time.perf_counter()
    engine = LipSyncEngine.load(bundle, backend=backend, threads=threads)
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = engine.dub(video, audio, Path(folder) / "out.mp4", preset="veryfast")
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


def passes(bundle: str, threads: int, chunks: int) -> dict[str, Any]:
    """Milliseconds of each pass on both backends, chunk by chunk in turns, in this process.

    The chunks before the window is full are run but not counted.

    Raises:
        ParityError: the two do not compute the same.
    """
    # Imported here, so that the processes that dub do not load PyTorch.
    import torch
    from lipstream_export.torch_backend import TorchBackend

    from .device_peaks import measured
    from .roofline import bound, of_bundle
    from .upstream import UpstreamSteps

    ceiling, figures = measured(torch.device("cpu"), threads)
    engines = {name: LipSyncEngine.load(bundle, backend=name, threads=threads) for name in (OURS, EAGER)}
    eager = engines[EAGER].backend
    assert isinstance(eager, TorchBackend)
    streams: dict[str, Passes] = {name: engine.backend.open_steps() for name, engine in engines.items()}
    streams[UPSTREAM] = UpstreamSteps(eager)
    manifest = engines[OURS].manifest
    g = manifest.geometry
    steps = len(manifest.t_list) - 1
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    filling = -(-g.window // g.chunk_frames)
    worst = 0.0
    times: dict[str, list[list[float]]] = {name: [] for name in streams}
    for chunk in range(filling + chunks):
        latents = [normal(g.latent_channels, g.chunk_frames, *g.latent_size) for _ in range(steps + 1)]
        condition = normal(3 * g.latent_channels + 1, g.chunk_frames, *g.latent_size)
        audio = normal(g.video_frames, manifest.audio.features)
        velocities = {}
        for name in [*streams][:: 1 if chunk % 2 else -1]:
            seconds, velocities[name] = one_chunk(streams[name], chunk, latents, condition, audio)
            if chunk >= filling:
                times[name].append(seconds)
        for name in (OURS, UPSTREAM):
            for found, wanted in zip(velocities[name], velocities[EAGER], strict=True):
                worst = max(worst, float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
    if not worst <= TOLERANCE:
        raise ParityError(f"{', '.join(streams)} differ by {worst:.1e}", expected=f"at most {TOLERANCE:.0e}")
    milliseconds = {name: 1000 * np.array(rows) for name, rows in times.items()}
    kinds = [*(f"denoise_{i}" for i in range(steps)), "context"]
    ratios = {name: rows.sum(axis=1) / milliseconds[OURS].sum(axis=1) for name, rows in milliseconds.items()}
    costs = of_bundle(Bundle.load(bundle))
    least = [1000 * bound(costs[graph, "", g.window], ceiling) for graph in ["denoiser"] * steps + ["context"]]
    medians = np.median(milliseconds[OURS], axis=0)
    return {
        "relative_difference": worst,
        "ceilings": figures,
        "of_bound": {kind: part / ms for kind, part, ms in zip(kinds, least, medians, strict=True)},
        **{f"{name}_ms": _table(rows, kinds) for name, rows in milliseconds.items()},
        "ours_times_faster": spread(ratios[EAGER]),
        "ours_times_faster_than_upstream": spread(ratios[UPSTREAM]),
    }


def _table(rows: NDArray[np.float64], kinds: list[str]) -> dict[str, dict[str, float]]:
    return {kind: spread(rows[:, i]) for i, kind in enumerate(kinds)} | {"chunk": spread(rows.sum(axis=1))}


class Passes(Protocol):
    """The part of `lipstream.backends.steps.Steps` that is the DiT."""

    def begin_chunk(self, chunk: int) -> None: ...
    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array: ...
    def context(self, latent: Array, condition: Array, audio: Array) -> None: ...


def one_chunk(
    stream: Passes, chunk: int, latents: list[Array], condition: Array, audio: Array
) -> tuple[list[float], list[Array]]:
    """Run all passes of a chunk, each on a separate latent; return their seconds and velocities."""
    *noisy, clean = latents
    seconds, velocities = [], []
    stream.begin_chunk(chunk)
    for step, latent in enumerate(noisy):
        start = time.perf_counter()
        velocities.append(stream.denoise(latent, condition, audio, step))
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    stream.context(clean, condition, audio)
    seconds.append(time.perf_counter() - start)
    return seconds, velocities


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Spread of every number over the runs; values that are equal in all runs appear once."""
    first = runs[0]
    result: dict[str, Any] = {"frames": first["frames"], "size": first["size"]}
    for key in ("fps", "seconds", "load_seconds", "first_frame_seconds", "dit_share", "peak_memory_mib"):
        result[key] = spread([run[key] for run in runs])
    stages = {name: spread([run["stages_seconds"][name] for run in runs]) for name in first["stages_seconds"]}
    return result | {"stages_seconds": stages}


def run(args: argparse.Namespace) -> bool:
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], EAGER: []}
    with tqdm(total=2 * args.runs + 1, desc="runs", unit="run", disable=None) as bar:
        for _ in range(args.runs):
            for backend, found in runs.items():
                bar.set_postfix_str(backend)
                found.append(in_fresh_process(dub, args.bundle, backend, args.threads, args.video, args.audio))
                bar.update()
        bar.set_postfix_str("passes")
        alone = in_fresh_process(passes, args.bundle, args.threads, args.chunks)
        bar.update()
    whole = {backend: summarise(found) for backend, found in runs.items()}
    ratio = spread([a["fps"] / b["fps"] for a, b in zip(runs[OURS], runs[EAGER], strict=True)])
    for backend, summary in whole.items():
        print(describe(backend, summary))
    ours, eager = alone[f"{OURS}_ms"]["chunk"]["median"], alone[f"{EAGER}_ms"]["chunk"]["median"]
    faster = alone["ours_times_faster"]
    print(
        f"whole job: {ratio['median']:.2f} times the speed of eager PyTorch "
        f"({ratio['min']:.2f} to {ratio['max']:.2f})\n"
        f"passes of a chunk: {ours:.1f} ms against {eager:.1f} ms, {faster['median']:.2f} times the speed "
        f"({faster['min']:.2f} to {faster['max']:.2f}), velocities differ by {alone['relative_difference']:.1e}\n"
        f"against the structure of the released code: {alone['ours_times_faster_than_upstream']['median']:.2f} times\n"
        f"of what the machine allows: {', '.join(f'{kind} {x:.0%}' for kind, x in alone['of_bound'].items())}"
    )
    write(args.json, "throughput", args, {"dub": whole, "dub_times_faster": ratio, "passes": alone})
    return True


def describe(backend: str, found: dict[str, Any]) -> str:
    fps, (width, height) = found["fps"], found["size"]
    stages = ", ".join(f"{name} {seconds['median']:.2f}" for name, seconds in found["stages_seconds"].items())
    return (
        f"{backend}: {fps['median']:.1f} fps ({fps['min']:.1f} to {fps['max']:.1f}) on {width}x{height}, "
        f"first frame after {found['first_frame_seconds']['median']:.2f} s, DiT {found['dit_share']['median']:.0%}, "
        f"peak memory {found['peak_memory_mib']['median']:.0f} MiB\n  seconds: {stages}"
    )


def build_parser() -> argparse.ArgumentParser:
    options = parser("throughput", __doc__, least={"runs": 1, "chunks": 2})
    options.add_argument("--video", type=Path, default=samples.FACE, help="default: the shipped sample")
    options.add_argument("--audio", type=Path, default=samples.SPEECH, help="default: the shipped sample")
    options.add_argument("--runs", type=positive, default=5, help="of the whole job on each backend (default 5)")
    options.add_argument("--chunks", type=positive, default=40, help="counted chunks for the passes alone (default 40)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
