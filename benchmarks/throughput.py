"""Speed of the whole job, from video and speech to a dubbed file.

Each run is `LipSyncEngine.dub` in a fresh process (benchmarks/whole_job.py), at three sizes of video and on one and two
cores: frames per second, seconds to the first frame, seconds per stage, the DiT's share of the time, and the process's
peak memory. Two more jobs run in turns with it, so that a machine that becomes slower or faster affects all of them:

- a plain transcode (benchmarks/transcode.py): the same file decoded and the same number of frames encoded with the
  same settings, on the same cores. The share of its speed that the dub reaches shows the cost of everything else;
- the same dub with PyTorch (eager, same bundle, same number of threads), at the smallest and the largest size and on
  the most cores only.

Ratios are formed within each round. The sizes are that of the sample that ships with LipStream and two clips made from
it (benchmarks/clips.py), as long as the speech; with --video that file alone is measured.

Then the passes alone, in one process and on the same inputs: one chunk by our backend, the same chunk by PyTorch, and
so on; their velocities must agree before any time counts. The passes also run in PyTorch with the structure of the
released code (benchmarks/upstream.py). The machine's ceilings are measured in the same process, and each graph's time
is given as a share of the bound that follows from them and from its counted operations (benchmarks/roofline.py).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lipstream import LipSyncEngine, samples
from lipstream.backends.base import Array
from lipstream.bundle import Bundle
from lipstream.errors import ParityError
from numpy.typing import NDArray
from tqdm import trange

from . import whole_job
from .common import in_fresh_process, main, parser, positive, spread, write
from .whole_job import CRF, EAGER, OURS, PRESET, SIZES

UPSTREAM = "upstream"
TOLERANCE = 1e-4


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
    for chunk in trange(filling + chunks, desc="passes", unit="chunk", disable=None):
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


def run(args: argparse.Namespace) -> bool:
    rows = whole_job.measure(args)
    alone = in_fresh_process(passes, args.bundle, args.threads, args.chunks)
    whole: dict[str, dict[str, Any]] = {}
    for case, row in rows.items():
        whole.setdefault(case.size, {})[str(case.cores)] = row
        print(whole_job.describe(case, row))
    ours, eager = alone[f"{OURS}_ms"]["chunk"]["median"], alone[f"{EAGER}_ms"]["chunk"]["median"]
    faster = alone["ours_times_faster"]
    print(
        f"passes of a chunk: {ours:.1f} ms against {eager:.1f} ms, {faster['median']:.2f} times the speed "
        f"({faster['min']:.2f} to {faster['max']:.2f}), velocities differ by {alone['relative_difference']:.1e}\n"
        f"against the structure of the released code: {alone['ours_times_faster_than_upstream']['median']:.2f} times\n"
        f"of what the machine allows: {', '.join(f'{kind} {x:.0%}' for kind, x in alone['of_bound'].items())}"
    )
    encoder = {"codec": "libx264", "preset": args.preset, "crf": CRF}
    write(args.json, "throughput", args, {"encoder": encoder, "whole_job": whole, "passes": alone})
    return True


def build_parser() -> argparse.ArgumentParser:
    options = parser("throughput", __doc__, least={"runs": 1, "chunks": 2, "sizes": [*SIZES][:2]})
    source = options.add_mutually_exclusive_group()
    source.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES], help="of the video (default: all)")
    source.add_argument("--video", type=Path, help="measure this file alone")
    options.add_argument("--audio", type=Path, default=samples.SPEECH, help="default: the shipped sample")
    options.add_argument("--preset", default=PRESET, help=f"of x264, for dub and transcode (default {PRESET})")
    options.add_argument("--cores", nargs="+", type=positive, default=[1, 2], help="for the whole job (default 1 2)")
    options.add_argument("--runs", type=positive, default=5, help="of the whole job, in each case (default 5)")
    options.add_argument("--chunks", type=positive, default=40, help="counted chunks for the passes alone (default 40)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
