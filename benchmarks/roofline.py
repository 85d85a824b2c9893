"""Lower bounds of every graph's time, from its counted operations and bytes and the peak rates of GPUs and this CPU.

Operations, bytes and kernel launches come from the exported ONNX (benchmarks/count.py says how), for tiny, 1.3b and
14b in each precision and at every length of the window. A kernel's bound is the longer of two times: its operations at
the ceiling of their type, its bytes at that of memory; a graph's is the sum. Ceilings of GPUs are the manufacturers'
dense figures; products reach about two thirds of them in practice (--reach), and a kernel takes at least two
microseconds (an assumption): the results show both bounds.

The rows of this machine validate the method: its ceilings are measured in the same run (a large matrix product, and
copies inside and outside the cache), and every graph of the bundle is timed on ONNX Runtime. The ratio of measured time
to bound shows how reliable the other rows are. Exporting 14b takes minutes, but little memory, since its weights are
synthetic (benchmarks/synthetic_weights.py).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from lipstream import LipSyncEngine
from lipstream.bundle import Bundle, Geometry
from lipstream_models import STUDENTS, StudentConfig
from onnx_ir.passes.common import RemoveUnusedNodesPass
from tqdm import tqdm

from . import synthetic_weights
from .common import ROOT, main, parser, positive, spread, write
from .count import Cost, Kernel, Ring, count
from .device_peaks import Ceiling, measured

DEADLINE = 0.48
"""Seconds that a chunk's 12 frames are shown."""
FRAMES = 12
LAUNCH = 2e-6
"""Least seconds of a kernel of a captured graph: an assumption."""
RESULTS = ROOT / "benchmarks" / "results" / "roofline.json"
SPARE = 0.9  # of a GPU's memory
CONTEXT = "context"
"""What a context pass needs of the denoiser's graph: not what only the velocity depends on, which it runs, too."""
GRAPHS = ("audio_encoder", "video_encoder", "denoiser", "video_decoder")


DEVICES = {
    "H100": Ceiling(67e12, 989e12, 1979e12, 3.35e12, 80e9, "NVIDIA H100 SXM5 datasheet, dense"),
    "H200": Ceiling(67e12, 989e12, 1979e12, 4.8e12, 141e9, "NVIDIA H200 SXM datasheet, dense"),
    "L40S": Ceiling(91.6e12, 362e12, 733e12, 0.864e12, 48e9, "NVIDIA L40S datasheet, dense"),
    "B200": Ceiling(75e12, 2250e12, 4500e12, 8.0e12, 180e9, "NVIDIA HGX B200 datasheet per GPU, dense"),
}


def bound(cost: Cost, ceiling: Ceiling, reach: float = 1.0, launch: float = 0.0) -> float:
    """Lower bound of a graph's time in seconds.

    Args:
        reach: share of their ceiling that products reach. launch: least seconds of a kernel.
    """
    return sum(_longest(kernel, ceiling, reach, launch) for kernel in cost.kernels)


def _longest(kernel: Kernel, ceiling: Ceiling, reach: float, launch: float) -> float:
    peak = getattr(ceiling, kernel.number) * reach if kernel.number else math.inf
    return max(kernel.operations / peak, kernel.bytes / ceiling.bandwidth, launch)


def recorded_bound(
    size: str, precision: str, graph: str, attended: int, ceiling: Ceiling, codec: str = ""
) -> float | None:
    """Lower bound of a graph's time in seconds, by the counts in results/roofline.json; None if there are none."""
    try:
        found = json.loads(RESULTS.read_text())["results"]["graphs"][f"{size} {precision}"]
    except (OSError, KeyError):
        return None
    for row in found:
        if (row["graph"], row["codec"], row["attended"]) == (graph, codec, attended):
            kernels = [(Kernel("", int(ops), number, int(moved)), n) for number, ops, moved, n in row["alike"]]
            return sum(n * _longest(kernel, ceiling, 1.0, 0.0) for kernel, n in kernels)
    return None


def recorded(costs: Costs) -> list[dict[str, Any]]:
    """Counts of graphs as results/roofline.json has them: `alike` lists [type, operations, bytes, how many kernels]."""

    def alike(cost: Cost) -> list[list[Any]]:
        kinds = Counter((kernel.number, kernel.operations, kernel.bytes) for kernel in cost.kernels)
        return [[*kind, n] for kind, n in kinds.items()]

    return [
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
            "alike": alike(cost),
        }
        for (name, codec, frames), cost in costs.items()
    ]


@dataclass(frozen=True)
class Scenario:
    """How a stream runs: the codec of each half; no encoder for a prepared reference, which is already encoded."""

    name: str
    encoder: str
    decoder: str = "taehv"


SCENARIOS = {
    "tiny": (Scenario("live", "taehv"), Scenario("prepared", "")),
    "1.3b": (Scenario("live", "wan"), Scenario("live, TAEHV encoder", "taehv"), Scenario("prepared", "")),
}
SCENARIOS["14b"] = SCENARIOS["1.3b"]


Costs = dict[tuple[str, str, int], Cost]
"""By graph, codec and attended frames (0 where nothing depends on them)."""


def phases(config: StudentConfig | Geometry) -> list[int]:
    """Numbers of latent frames that a pass attends to, while the window fills and after it."""
    return [*range(config.chunk_frames, config.window - config.sink + 1, config.chunk_frames), config.window]


FEW, MORE = 4, 6
"""Layers of the two shallow students that are exported: every two further layers are alike, audio included."""


def student(size: str, precision: str, layers: int = 0) -> Costs:
    """All graphs of a student, from a model without weights.

    A deep student is extrapolated from two shallow ones that differ by two layers: exporting forty layers takes many
    minutes, and gives the same counts.
    """

    def exported(layers: int, *, passes: bool) -> Costs:
        found: Costs = {}
        name = f"{size} {precision}, {layers or 'all'} layers"
        chosen = synthetic_weights.graphs(size, precision, layers=layers, passes=passes)
        for graph in tqdm(chosen, name, unit="graph", disable=None):
            found |= _each_phase(graph.name, graph.codec, graph.model, STUDENTS[size], "native")
        return found

    depth = STUDENTS[size].num_layers
    if layers or depth <= MORE:
        return exported(layers, passes=False)
    few = exported(FEW, passes=False)
    steps, odd = divmod(depth - FEW, MORE - FEW)
    assert not odd, depth
    return few | {key: few[key].grown(more, steps) for key, more in exported(MORE, passes=True).items()}


def of_bundle(bundle: Bundle) -> Costs:
    """The graphs of a bundle of float32 ONNX, as ONNX Runtime runs them: the ring's function copies it."""
    models = {name: onnx_ir.load(bundle.file(f"{name}.onnx")) for name in GRAPHS}
    models[CONTEXT] = onnx_ir.load(bundle.file("denoiser.onnx"))
    outputs = models[CONTEXT].graph.outputs
    outputs[:] = [x for x in outputs if x.name != "velocity"]
    RemoveUnusedNodesPass()(models[CONTEXT])
    found: Costs = {}
    for name, model in models.items():
        found |= _each_phase(name, "", model, bundle.manifest.geometry, "function")
    return found


def _each_phase(name: str, codec: str, model: onnx_ir.Model, config: StudentConfig | Geometry, ring: Ring) -> Costs:
    lengths = phases(config) if name in ("denoiser", CONTEXT) else [0]
    return {(name, codec, frames): count(model, frames, ring) for frames in lengths}


def rows(size: str, precision: str, costs: Costs, devices: dict[str, Ceiling], reach: float) -> list[dict[str, Any]]:
    """One row for each scenario and device."""
    steps, window = len(STUDENTS[size].t_list) - 1, STUDENTS[size].window
    first = phases(STUDENTS[size])[0]
    found = []
    for scenario in SCENARIOS[size]:
        stages = {
            "audio": (costs["audio_encoder", "", 0], 1),
            "denoise": (costs["denoiser", "", window], steps),
            "context": (costs["denoiser", "", window], 1),
            "decode": (costs["video_decoder", scenario.decoder, 0], 1),
        }
        if scenario.encoder:
            stages = {"encode": (costs["video_encoder", scenario.encoder, 0], 1), **stages}
        begin = {name: stage for name, stage in stages.items() if name != "context"}
        begin["denoise"] = costs["denoiser", "", first], steps
        # The context pass runs the denoiser's engine.
        weights = sum(cost.weights for name, (cost, _) in stages.items() if name != "context")
        stream = sum(cost.state for name, (cost, _) in stages.items() if name != "context")
        workspace = max(cost.workspace for cost, _ in stages.values())
        for device, ceiling in devices.items():
            times = {name: times_ * bound(cost, ceiling) for name, (cost, times_) in stages.items()}
            real = sum(times_ * bound(cost, ceiling, reach, LAUNCH) for cost, times_ in stages.values())
            begun = sum(times_ * bound(cost, ceiling, reach, LAUNCH) for cost, times_ in begin.values())
            free = SPARE * ceiling.memory - weights - workspace
            by_memory = max(0, int(free // stream))
            found.append(
                {
                    "student": size,
                    "precision": precision,
                    "scenario": scenario.name,
                    "device": device,
                    "tera_operations": sum(n * cost.operations for cost, n in stages.values()) / 1e12,
                    "gigabytes": sum(n * cost.bytes for cost, n in stages.values()) / 1e9,
                    "launches": sum(n * len(cost.kernels) for cost, n in stages.values()),
                    "stages_ms": {name: 1000 * seconds for name, seconds in times.items()},
                    "chunk_ms": 1000 * sum(times.values()),
                    "fps": FRAMES / sum(times.values()),
                    "fps_at_reach": FRAMES / real,
                    "first_chunk_ms": 1000 * begun,
                    "weights_gb": weights / 1e9,
                    "stream_gb": stream / 1e9,
                    "workspace_gb": workspace / 1e9,
                    "streams_by_time": int(DEADLINE // real),
                    "streams_by_memory": by_memory,
                    "streams": min(by_memory, int(DEADLINE // real)),
                }
            )
    return found


def timed(bundle: str, threads: int, repeats: int) -> dict[tuple[str, int], dict[str, float]]:
    """Milliseconds of every graph of a bundle on ONNX Runtime, by name and attended frames."""
    engine = LipSyncEngine.load(bundle, threads=threads)
    manifest = engine.manifest
    g, a = manifest.geometry, manifest.audio
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    samples = normal(a.window(g.video_frames))
    crops = rng.random((g.video_frames, 3, *g.crop_size), np.float32)
    latent = normal(g.latent_channels, g.chunk_frames, *g.latent_size)
    condition = normal(3 * g.latent_channels + 1, g.chunk_frames, *g.latent_size)
    features = normal(g.video_frames, a.features)
    lengths = phases(g)
    seconds: dict[tuple[str, int], list[float]] = {}

    def call(key: tuple[str, int], function: Callable[..., object], *arguments: object) -> None:
        start = time.perf_counter()
        function(*arguments)
        seconds.setdefault(key, []).append(time.perf_counter() - start)

    for _ in range(repeats):
        stream = engine.backend.open_steps()
        for chunk in range(len(lengths) + 2):
            frames = lengths[min(chunk, len(lengths) - 1)]
            stream.begin_chunk(chunk)
            call(("audio_encoder", 0), stream.encode_audio, samples)
            call(("video_encoder", 0), stream.encode_video, crops)
            call(("denoiser", frames), stream.denoise, latent, condition, features, 0)
            call(("video_decoder", 0), stream.decode, latent)
            call((CONTEXT, frames), stream.context, latent, condition, features)
    return {key: spread(1000 * np.array(found)) for key, found in seconds.items()}


def check(args: argparse.Namespace) -> dict[str, Any]:
    """This machine's bound of every graph of the bundle, beside what was measured."""
    ceiling, figures = measured(torch.device("cpu"), args.threads)
    costs = of_bundle(Bundle.load(args.bundle))
    times = timed(args.bundle, args.threads, args.repeats)
    found = []
    for (name, _, frames), cost in costs.items():
        least, real = 1000 * bound(cost, ceiling), times[name, frames]
        row = {"graph": name, "attended": frames, "operations": cost.operations, "bytes": cost.bytes}
        row |= {"kernels": len(cost.kernels), "bound_ms": least, "measured_ms": real, "ratio": real["median"] / least}
        found.append(row)
    return {"ceilings": figures, "threads": args.threads, "graphs": found, "counts": recorded(costs)}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown, as docs/performance.md has them."""
    lines = [
        "| student | precision | scenario | device | TFLOP | GB | launches | chunk, ms | fps | fps at "
        f"{found['reach']:.0%} | first chunk, ms | weights, GB | a stream, GB | streams |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        lines.append(
            f"| {r['student']} | {r['precision']} | {r['scenario']} | {r['device']} | {r['tera_operations']:.3g} "
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
    names = [f"{r['student']} {r['precision']}\n{r['scenario']}" for r in bars]
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
    live = [r for r in found["rows"] if r["scenario"] == "live" and r["student"] != "tiny"]
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
            results.setdefault("graphs", {})[f"{size} {precision}"] = recorded(costs)
    print(table(results))
    write(args.json, "roofline", args, results)
    if args.plot:
        plot(results, args.plot)
    return True


def build_parser() -> argparse.ArgumentParser:
    least = {"sizes": ["tiny"], "precisions": ["bf16"], "layers": 2, "repeats": 2}
    options = parser("roofline", __doc__, least=least)
    options.add_argument("--sizes", nargs="+", choices=SCENARIOS, default=[*SCENARIOS], help="students (default: all)")
    options.add_argument("--precisions", nargs="+", choices=("bf16", "fp8"), default=["bf16", "fp8"], help="of GPUs")
    options.add_argument("--reach", type=float, default=0.68, help="share of their ceiling that products reach")
    options.add_argument("--layers", type=positive, default=0, help="of the DiT, in place of all")
    options.add_argument("--repeats", type=positive, default=30, help="streams timed on this machine (default 30)")
    options.add_argument("--plot", type=Path, metavar="SVG", help="also draw it")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
