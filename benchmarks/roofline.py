"""The least time that every graph can take, counted from the graphs themselves, against ceilings of GPUs and this CPU.

Operations, bytes and kernel launches come from the exported ONNX (benchmarks/count.py says how), for tiny, 1.3b and
14b in each precision and at every length of the window. A kernel's bound is the longer of two times: its operations at
the ceiling of their type, its bytes at that of memory; a graph's is the sum. Ceilings of GPUs are their makers' dense
figures; products reach some two thirds of them in practice (--reach), and both are shown.

The rows of this machine are checked: its own ceilings are measured in the same run (a large matrix product, and copies
that stay in the cache and that do not), and every graph of the bundle is timed on ONNX Runtime. How far the measured
time is from the bound says how far the other rows can be believed. Exporting 14b takes minutes, but no memory to speak
of: its weights are not there (benchmarks/hollow.py).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from lipstream import LipSyncEngine
from lipstream.bundle import Bundle
from lipstream_training.models import STUDENTS
from tqdm import tqdm

from . import hollow
from .common import main, parser, positive, spread, write
from .count import Cost, Ring, count

DEADLINE = 0.48
"""Seconds that a chunk's 12 frames are shown."""
FRAMES = 12
SPARE = 0.9  # of a GPU's memory
GRAPHS = ("audio_encoder", "video_encoder", "denoiser", "context", "video_decoder")


@dataclass(frozen=True)
class Ceiling:
    """What a device can do at most: operations a second by type, bytes a second, bytes of memory."""

    fp32: float
    bf16: float
    fp8: float
    bandwidth: float
    memory: float
    origin: str = "datasheet, dense"


DEVICES = {
    "H100": Ceiling(67e12, 989e12, 1979e12, 3.35e12, 80e9, "NVIDIA H100 SXM5 datasheet, dense"),
    "H200": Ceiling(67e12, 989e12, 1979e12, 4.8e12, 141e9, "NVIDIA H200 SXM datasheet, dense"),
    "L40S": Ceiling(91.6e12, 362e12, 733e12, 0.864e12, 48e9, "NVIDIA L40S datasheet, dense"),
    "B200": Ceiling(75e12, 2250e12, 4500e12, 8.0e12, 180e9, "NVIDIA HGX B200 datasheet per GPU, dense"),
}


def bound(cost: Cost, ceiling: Ceiling, reach: float = 1.0) -> float:
    """Seconds that a graph takes at least; with `reach` products come to that share of their ceiling."""

    def one(operations: int, number: str, moved: int) -> float:
        peak = getattr(ceiling, number) * reach if number else math.inf
        return max(operations / peak, moved / ceiling.bandwidth)

    return sum(one(kernel.operations, kernel.number, kernel.bytes) for kernel in cost.kernels)


@dataclass(frozen=True)
class Way:
    """How a stream runs: the codec of each half; none for a prepared reference, which is encoded already."""

    name: str
    encoder: str
    decoder: str = "taehv"


WAYS = {
    "tiny": (Way("live", "taehv"), Way("prepared", "")),
    "1.3b": (Way("live", "wan"), Way("live, TAEHV encoder", "taehv"), Way("prepared", "")),
}
WAYS["14b"] = WAYS["1.3b"]


Costs = dict[tuple[str, str, int], Cost]
"""By graph, codec and attended frames (0 where nothing depends on them)."""


def phases(size: str) -> list[int]:
    """How many latent frames a pass attends: while the window fills, and from then on."""
    config = STUDENTS[size]
    return [*range(config.chunk_frames, config.window - config.sink + 1, config.chunk_frames), config.window]


def student(size: str, precision: str, layers: int = 0) -> Costs:
    """All graphs of a student, from a model without weights."""
    found: Costs = {}
    for graph in tqdm(hollow.graphs(size, precision, layers=layers), f"{size} {precision}", unit="graph", disable=None):
        found |= _each_phase(graph.name, graph.codec, graph.model, size, "native")
    return found


def of_bundle(bundle: Bundle, size: str) -> Costs:
    """The graphs of a bundle of float32 ONNX, as ONNX Runtime runs them: the ring's function copies it."""
    found: Costs = {}
    for name in GRAPHS:
        codec = "taehv" if name.startswith("video") else ""
        found |= _each_phase(name, codec, onnx_ir.load(bundle.file(f"{name}.onnx")), size, "function")
    return found


def _each_phase(name: str, codec: str, model: onnx_ir.Model, size: str, ring: Ring) -> Costs:
    lengths = phases(size) if name in ("denoiser", "context") else [0]
    return {(name, codec, frames): count(model, frames, ring) for frames in lengths}


def rows(size: str, precision: str, costs: Costs, devices: dict[str, Ceiling], reach: float) -> list[dict[str, Any]]:
    """One row for each way and device."""
    steps, window = len(STUDENTS[size].t_list) - 1, STUDENTS[size].window
    first = phases(size)[0]
    found = []
    for way in WAYS[size]:
        stages = {
            "audio": (costs["audio_encoder", "", 0], 1),
            "denoise": (costs["denoiser", "", window], steps),
            "context": (costs["context", "", window], 1),
            "decode": (costs["video_decoder", way.decoder, 0], 1),
        }
        if way.encoder:
            stages = {"encode": (costs["video_encoder", way.encoder, 0], 1), **stages}
        begin = {name: stage for name, stage in stages.items() if name != "context"}
        begin["denoise"] = costs["denoiser", "", first], steps
        # The context graph's weights are the denoiser's.
        weights = sum(cost.weights for name, (cost, _) in stages.items() if name != "context")
        stream = sum(cost.state for name, (cost, _) in stages.items() if name != "context")
        workspace = max(cost.workspace for cost, _ in stages.values())
        for device, ceiling in devices.items():
            times = {name: times_ * bound(cost, ceiling) for name, (cost, times_) in stages.items()}
            real = sum(times_ * bound(cost, ceiling, reach) for cost, times_ in stages.values())
            room = SPARE * ceiling.memory - weights - workspace
            by_memory = max(0, int(room // stream))
            found.append(
                {
                    "student": size,
                    "precision": precision,
                    "way": way.name,
                    "device": device,
                    "tera_operations": sum(n * cost.operations for cost, n in stages.values()) / 1e12,
                    "gigabytes": sum(n * cost.bytes for cost, n in stages.values()) / 1e9,
                    "launches": sum(n * len(cost.kernels) for cost, n in stages.values()),
                    "stages_ms": {name: 1000 * seconds for name, seconds in times.items()},
                    "chunk_ms": 1000 * sum(times.values()),
                    "fps": FRAMES / sum(times.values()),
                    "fps_at_reach": FRAMES / real,
                    "first_chunk_ms": 1000 * sum(n * bound(cost, ceiling, reach) for cost, n in begin.values()),
                    "weights_gb": weights / 1e9,
                    "stream_gb": stream / 1e9,
                    "workspace_gb": workspace / 1e9,
                    "streams_by_time": int(DEADLINE // real),
                    "streams_by_memory": by_memory,
                    "streams": min(by_memory, int(DEADLINE // real)),
                }
            )
    return found


def this_cpu(threads: int) -> tuple[Ceiling, dict[str, float]]:
    """Ceilings of this machine, measured: float32 products, and copies inside the cache (the bound) and outside."""
    torch.set_num_threads(threads)
    a = torch.randn(1536, 1536)
    product = 2 * 1536**3 / _best(lambda: a @ a, 12)
    small, large = torch.randn(2**17), torch.randn(2**26)  # 0.5 MB, 256 MB
    to_small, to_large = torch.empty_like(small), torch.empty_like(large)
    cached = 2 * small.nbytes / _best(lambda: to_small.copy_(small), 200)
    memory = 2 * large.nbytes / _best(lambda: to_large.copy_(large), 8)
    figures = {"product_gflops": product / 1e9, "cached_copy_gb_s": cached / 1e9, "memory_copy_gb_s": memory / 1e9}
    return Ceiling(product, product, product, cached, 0.0, "measured"), figures


def _best(function: Callable[[], object], repeats: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


def timed(bundle: str, threads: int, repeats: int) -> dict[tuple[str, int], dict[str, float]]:
    """Milliseconds of every graph of a bundle on ONNX Runtime, by name and attended frames."""
    engine = LipSyncEngine.load(bundle, threads=threads)
    manifest = engine.manifest
    g, a = manifest.geometry, manifest.audio
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    samples = normal(a.lookback + g.video_frames * a.samples_per_frame + a.lookahead)
    crops = rng.random((g.video_frames, 3, *g.crop_size), np.float32)
    latent = normal(g.latent_channels, g.chunk_frames, *g.latent_size)
    condition = normal(3 * g.latent_channels + 1, g.chunk_frames, *g.latent_size)
    heard = normal(g.video_frames, a.features)
    lengths = [*range(g.chunk_frames, g.window - g.sink + 1, g.chunk_frames), g.window]
    seconds: dict[tuple[str, int], list[float]] = {}

    def call(key: tuple[str, int], function: Callable[..., object], *arguments: object) -> None:
        start = time.perf_counter()
        function(*arguments)
        seconds.setdefault(key, []).append(time.perf_counter() - start)

    for _ in range(repeats):
        stream = engine.open_stream()
        for chunk in range(len(lengths) + 2):
            frames = lengths[min(chunk, len(lengths) - 1)]
            stream.begin_chunk(chunk)
            call(("audio_encoder", 0), stream.encode_audio, samples)
            call(("video_encoder", 0), stream.encode_video, crops)
            call(("denoiser", frames), stream.denoise, latent, condition, heard, 0)
            call(("video_decoder", 0), stream.decode, latent)
            call(("context", frames), stream.context, latent, condition, heard)
    return {key: spread(1000 * np.array(found)) for key, found in seconds.items()}


def check(args: argparse.Namespace) -> dict[str, Any]:
    """This machine's bound of every graph of the bundle, beside what was measured."""
    ceiling, figures = this_cpu(args.threads)
    costs = of_bundle(Bundle.load(args.bundle), "tiny")
    measured = timed(args.bundle, args.threads, args.repeats)
    found = []
    for (name, _, frames), cost in costs.items():
        least, real = 1000 * bound(cost, ceiling), measured[name, frames]
        row = {"graph": name, "attended": frames, "operations": cost.operations, "bytes": cost.bytes}
        row |= {"kernels": len(cost.kernels), "bound_ms": least, "measured_ms": real, "ratio": real["median"] / least}
        found.append(row)
    return {"ceilings": figures, "threads": args.threads, "graphs": found}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown, as docs/performance.md has them."""
    lines = [
        "| student | precision | way | device | TFLOP | GB | launches | chunk, ms | fps | fps at "
        f"{found['reach']:.0%} | first chunk, ms | weights, GB | a stream, GB | streams |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        lines.append(
            f"| {r['student']} | {r['precision']} | {r['way']} | {r['device']} | {r['tera_operations']:.3g} "
            f"| {r['gigabytes']:.3g} | {r['launches']} | {r['chunk_ms']:.3g} | {r['fps']:.0f} "
            f"| {r['fps_at_reach']:.0f} | {r['first_chunk_ms']:.3g} | {r['weights_gb']:.2f} | {r['stream_gb']:.2f} "
            f"| {r['streams']} |"
        )
    return "\n".join(lines)


def check_table(found: dict[str, Any]) -> str:
    """The check on this machine as Markdown."""
    lines = [
        "| graph | attended | MFLOP | MB | kernels | bound, ms | measured, ms | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found["graphs"]:
        lines.append(
            f"| {r['graph']} | {r['attended'] or ''} | {r['operations'] / 1e6:.0f} | {r['bytes'] / 1e6:.1f} "
            f"| {r['kernels']} | {r['bound_ms']:.2f} | {r['measured_ms']['median']:.2f} | {r['ratio']:.1f} |"
        )
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Where a chunk's time goes on an H100 at least, and how fast each device can be, as an SVG."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    bars = [r for r in found["rows"] if r["device"] == "H100" and r["student"] != "tiny"]
    names = [f"{r['student']} {r['precision']}\n{r['way']}" for r in bars]
    colours = {"encode": "#4c78a8", "audio": "#bab0ac", "denoise": "#f58518", "context": "#ffbf79", "decode": "#54a24b"}
    base = np.zeros(len(bars))
    for stage, colour in colours.items():
        heights = np.array([r["stages_ms"].get(stage, 0.0) for r in bars])
        left.barh(names, heights, left=base, label=stage, color=colour)
        base += heights
    left.set(xlabel="least milliseconds of 12 frames on one H100, at the datasheet's ceilings")
    left.invert_yaxis()
    left.tick_params(labelsize=7)
    left.legend(fontsize=8)
    live = [r for r in found["rows"] if r["way"] == "live" and r["student"] != "tiny"]
    kinds = sorted({(r["student"], r["precision"]) for r in live})
    devices = [*DEVICES]
    for i, kind in enumerate(kinds):
        fps = [
            next(r["fps_at_reach"] for r in live if r["device"] == d and (r["student"], r["precision"]) == kind)
            for d in devices
        ]
        right.bar(np.arange(len(devices)) + 0.2 * i - 0.3, fps, 0.2, label=" ".join(kind))
    right.axhline(25, color="#888888", ls=":", label="25 fps")
    right.set(
        ylabel=f"most fps, live, products at {found['reach']:.0%}", xticks=range(len(devices)), xticklabels=devices
    )
    right.legend(fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})


def run(args: argparse.Namespace) -> bool:
    results: dict[str, Any] = {"reach": args.reach, "devices": {k: asdict(v) for k, v in DEVICES.items()}}
    results["check"] = check(args)
    print(check_table(results["check"]))
    results["rows"] = []
    for size in args.sizes:
        for precision in args.precisions:
            costs = student(size, precision, args.layers)
            results["rows"] += rows(size, precision, costs, DEVICES, args.reach)
            results.setdefault("graphs", {})[f"{size} {precision}"] = [
                {
                    "graph": name,
                    "codec": codec,
                    "attended": frames,
                    "operations": cost.operations,
                    "bytes": cost.bytes,
                    "kernels": len(cost.kernels),
                    "weights": cost.weights,
                    "state": cost.state,
                    "workspace": cost.workspace,
                }
                for (name, codec, frames), cost in costs.items()
            ]
    print(table(results))
    write(args.json, "roofline", args, results)
    if args.plot:
        plot(results, args.plot)
    return True


def build_parser() -> argparse.ArgumentParser:
    options = parser("roofline", __doc__)
    options.add_argument("--sizes", nargs="+", choices=WAYS, default=[*WAYS], help="students (default: all)")
    options.add_argument("--precisions", nargs="+", choices=("bf16", "fp8"), default=["bf16", "fp8"], help="of GPUs")
    options.add_argument("--reach", type=float, default=0.68, help="share of their ceiling that products reach")
    options.add_argument("--layers", type=positive, default=0, help="of the DiT, in place of all")
    options.add_argument("--repeats", type=positive, default=30, help="streams timed on this machine (default 30)")
    options.add_argument("--plot", type=Path, metavar="SVG", help="also draw it")
    return options


if __name__ == "__main__":
    arguments = build_parser().parse_args()
    if arguments.quick:
        arguments.sizes, arguments.precisions, arguments.layers, arguments.repeats = ["tiny"], ["bf16"], 2, 2
    sys.exit(main(run, arguments))
