"""Where in the graphs the time goes, and how fast our own kernels are, on this CPU.

Graphs: every operator of every graph, timed by ONNX Runtime's profiler on one thread, summed by kind. The profiler
itself takes some microseconds per node. Kernels: those of csrc that a session calls, each in bytes a second and as a
share of the rate of a plain copy of that size in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from lipstream.backends.ring import Ring
from lipstream.bundle import Bundle
from lipstream.face.alignment import WHOLE_CANVAS
from lipstream.face.compositing import Compositor
from lipstream.media import Picture, PictureFormat
from tqdm import tqdm

from .common import main, parser, positive, spread, write
from .roofline import GRAPHS


def profile(bundle: Bundle, graph: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of one call by kind of operator, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(bundle.file(f"{graph}.onnx")), options, providers=["CPUExecutionProvider"])
        feed = inputs(session, bundle.manifest.geometry.window)
        for _ in range(repeats):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"]
            calls[event["args"]["op_name"]] += 1
    whole = sum(event["dur"] for event in events if event["name"] == "model_run")
    return {
        "ms": whole / 1000 / repeats,
        "operators": {
            name: {"ms": t / 1000 / repeats, "calls": calls[name] // repeats} for name, t in times.most_common()
        },
    }


def inputs(session: ort.InferenceSession, frames: int) -> dict[str, Any]:
    """Random inputs of a graph; dynamic sizes are attended frames."""
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else frames for size in value.shape]
        feed[value.name] = (
            np.zeros(shape, np.int64) if "int64" in value.type else rng.standard_normal(shape, np.float32)
        )
    return feed


def ours(bundle: Bundle, repeats: int) -> dict[str, Any]:
    """The kernels of csrc that a session calls: bytes moved, and how fast."""
    g = bundle.manifest.geometry
    ring = Ring(g)
    for chunk in range(4):
        ring.begin(chunk)
    frame = g.tokens * g.num_heads * g.head_dim * 4
    mask = bundle.constants["mask.composite"]
    compositor = Compositor(mask, box=g.crop_box)
    rng = np.random.default_rng(0)
    frame_1080p = Picture.of(rng.integers(0, 256, (1080, 1920, 3), np.uint8))
    frame_1080p = frame_1080p.converted(PictureFormat("yuv420p", 1920, 1080))
    picture, crop = rng.random((*g.crop_size, 3), np.float32), rng.integers(0, 256, (*g.crop_size, 3), np.uint8)
    width, height = WHOLE_CANVAS[2:]
    matrix = np.array([[width / 900, 0, -200.0], [0, height / 1200, 0.0]])
    region = 900 * 1000 * 3 // 2  # about the pixels of the face's box
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        "ring, a chunk begins (all layers)": (
            2 * g.num_layers * g.sink * frame,
            lambda: ring.begin(ring.position.chunk),
        ),
        "composite, a face of 900 pixels in 1080p": (
            2 * region,
            lambda: compositor.composite(frame_1080p, picture, crop, matrix),
        ),
    }
    found = {}
    for name, (moved, call) in cases.items():
        a = np.ones(max(moved // 2, 1), np.uint8)
        b = np.empty_like(a)
        copy = min(seconds(lambda a=a, b=b: np.copyto(b, a)) for _ in range(50))  # type: ignore[misc]
        times = [seconds(call) for _ in range(repeats)]
        found[name] = {
            "bytes": moved,
            "microseconds": spread(1e6 * np.array(times)),
            "gb_s": moved / np.median(times) / 1e9,
            "of_copy": copy / float(np.median(times)),
        }
    return found


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run(args: argparse.Namespace) -> bool:
    bundle = Bundle.load(args.bundle)
    graphs = {name: profile(bundle, name, args.repeats) for name in tqdm(GRAPHS, unit="graph", disable=None)}
    for name, found in graphs.items():
        most = ", ".join(f"{kind} {x['ms']:.2f}" for kind, x in [*found["operators"].items()][:6])
        print(f"{name}: {found['ms']:.2f} ms; {most}")
    kernels = ours(bundle, args.repeats)
    for name, kernel in kernels.items():
        us = kernel["microseconds"]["median"]
        print(f"{name}: {us:.0f} us, {kernel['gb_s']:.2f} GB/s, {kernel['of_copy']:.0%} of a copy")
    write(args.json, "kernels", args, {"graphs": graphs, "kernels": kernels})
    return True


def build_parser() -> argparse.ArgumentParser:
    options = parser("kernels", __doc__, least={"repeats": 3})
    options.add_argument("--repeats", type=positive, default=40, help="calls of each (default 40)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
