"""Time of a chunk on a backend, and the number of streams that fit; with --whole, everything that a session does.

Every stream runs chunk after chunk in its thread, on random crops and audio of the bundle's sizes: once as fast as
possible, to measure the total frame rate; once in real time, a chunk every 480 ms, to measure a chunk's time from its
start until its pictures are on the host. The first chunks, which fill the window and run before CUDA graphs are
captured, are excluded. Streams keep up if the 99th percentile of that time is below the duration of 12 pictures, 480
ms, and each gives 25 pictures a second. With --prepared the video is already encoded, as in a prepared reference. With
--against the pictures are compared with those of another bundle on its default backend (the float32 one from which
engines were built); --timeline draws the device's activity.

All of that is without video files, faces and compositing. --whole VIDEO measures sessions on that video instead: it is
decoded, tracked and cropped, a chunk generated and composited, and each frame taken; noise is the sound. It reports the
time from the first sound to the first frame in the caller's hand, frames a second of all sessions, and what each stage
costs a frame. Stages of several threads overlap, so they add up to more than the time of a frame.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from lipstream import LipSyncEngine
from lipstream.backends.base import ChunkInput, PendingChunk, Pictures
from lipstream.bundle import Manifest
from lipstream.bundle.golden import relative_error
from lipstream.errors import ConfigError
from lipstream.face.compositing import in_unit_range

from . import timeline
from .common import main, parser, positive, write

DEADLINE = 480.0
"""Milliseconds of 12 frames at 25 a second."""
WARM_UP = 6
DRAWN = 3


def inputs(manifest: Manifest, seed: int, count: int, prepared: bool = False) -> Iterator[ChunkInput]:
    """Inputs of chunks as in a session: smooth random pictures, and noise for sound."""
    g, a = manifest.geometry, manifest.audio
    latent = (g.latent_channels, g.chunk_frames, *g.latent_size)
    rng = np.random.default_rng(seed)
    height, width = g.crop_size
    for number in range(count):
        coarse = rng.integers(0, 256, (g.video_frames, 8, 8, 3), np.uint8)
        crops = coarse.repeat(-(-height // 8), 1).repeat(-(-width // 8), 2)[:, :height, :width]
        samples = 0.1 * rng.standard_normal(a.window(g.video_frames), np.float32)
        noises = [rng.standard_normal(latent, np.float32) for _ in manifest.t_list[1:]]
        missing = g.temporal - 1 if number == 0 else 0
        if prepared:
            latents = rng.standard_normal((2, *latent), np.float32)
            yield ChunkInput(number, None, latents, samples, noises, missing)
        else:
            yield ChunkInput(number, np.ascontiguousarray(crops), None, samples, noises, missing)


def drive(
    engine: LipSyncEngine, seed: int, count: int, prepared: bool = False, *, paced: bool = False
) -> Iterator[tuple[Pictures, float]]:
    """Pictures and milliseconds of each chunk of one stream, as a session drives it; `paced`: one every 480 ms."""
    chunks = engine.backend.open_stream()
    started: list[tuple[PendingChunk, float]] = []

    def finish() -> tuple[Pictures, float]:
        pending, at = started.pop(0)
        return pending.crops(), 1000 * (time.perf_counter() - at)

    try:
        begun = time.perf_counter() + seed % 8 * DEADLINE / 8000  # streams do not all begin at once
        for chunk in inputs(engine.manifest, seed, count, prepared):
            if paced:
                time.sleep(max(0.0, begun + chunk.number * DEADLINE / 1000 - time.perf_counter()))
            at = time.perf_counter()
            started.append((chunks.start(chunk, lambda stage: nullcontext()), at))
            while len(started) > (chunks.ahead and not paced):
                yield finish()
        while started:
            yield finish()
    finally:
        chunks.close()


def measure(engine: LipSyncEngine, streams: int, count: int, prepared: bool = False) -> dict[str, Any]:
    """`count` chunks on each of `streams` streams at once, after a warm-up: as fast as possible, then in real time."""
    frames = engine.manifest.geometry.video_frames

    def run(paced: bool) -> tuple[float, list[float]]:
        ready = threading.Barrier(streams)

        def one(seed: int) -> tuple[float, float, list[float]]:
            times, begun = [], 0.0
            for i, (_, milliseconds) in enumerate(drive(engine, seed, WARM_UP + count, prepared, paced=paced)):
                if i == WARM_UP - 1 and not paced:
                    ready.wait()
                if i == WARM_UP - 1:
                    begun = time.perf_counter()
                if i >= WARM_UP:
                    times.append(milliseconds)
            return begun, time.perf_counter(), times

        with ThreadPoolExecutor(streams) as pool:
            found = list(pool.map(one, range(streams)))
        seconds = max(end for _, end, _ in found) - min(begun for begun, _, _ in found)
        return seconds, [x for *_, times in found for x in times]

    seconds, _ = run(paced=False)
    fps = streams * count * frames / seconds
    _, times = run(paced=True)
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return {
        "streams": streams,
        "chunk_ms": {"p50": p50, "p95": p95, "p99": p99, "n": len(times)},
        "fps_of_all": fps,
        "keeps_up": bool(p99 < DEADLINE and fps >= 25 * streams),
    }


def difference(engine: LipSyncEngine, other: LipSyncEngine, count: int) -> float:
    """Greatest relative error of a chunk's pictures."""
    pairs = zip(drive(engine, 0, count), drive(other, 0, count), strict=True)
    return max(relative_error(in_unit_range(ours), in_unit_range(theirs)) for (ours, _), (theirs, _) in pairs)


def record(engine: LipSyncEngine, trace: Path | None) -> list[timeline.Span]:
    """Activity of the device's lanes over a few chunks in the middle of a stream; also written to `trace`."""
    if not hasattr(engine.backend, "trace"):
        raise ConfigError("this backend records no timeline", expected="engines, on backend tensorrt")
    driven = drive(engine, 0, WARM_UP + 2 * DRAWN)
    for _ in range(WARM_UP):
        next(driven)
    noted = engine.backend.trace()
    for _ in range(DRAWN):
        next(driven)
    spans = noted.spans()
    driven.close()
    if trace:
        noted.write(trace)
    return spans


def whole(engine: LipSyncEngine, video: Path, streams: int, count: int) -> dict[str, Any]:
    """Sessions on a video, at once: `count` chunks of each after a warm-up, taken as fast as they come."""
    frames, rate = engine.manifest.geometry.video_frames, engine.manifest.audio.sample_rate
    ready = threading.Barrier(streams)

    def one(seed: int) -> tuple[float, float, float, dict[str, float]]:
        sound = 0.1 * np.random.default_rng(seed).standard_normal(frames * rate // 25, np.float32)
        taken, first, begun, before = 0, 0.0, 0.0, dict[str, float]()
        with engine.session(video, seed=seed) as session:
            at = time.perf_counter()
            while taken < (WARM_UP + count) * frames:
                session.push_audio(sound, rate)
                for _ in session:
                    first = first or time.perf_counter() - at
                    taken += 1
                    if taken == WARM_UP * frames:
                        ready.wait()
                        begun, before = time.perf_counter(), session.timings
            return first, begun, time.perf_counter(), {k: s - before.get(k, 0.0) for k, s in session.timings.items()}

    with ThreadPoolExecutor(streams) as pool:
        found = list(pool.map(one, range(streams)))
    seconds = max(end for *_, end, _ in found) - min(begun for _, begun, *_ in found)
    each = streams * count * frames
    return {
        "streams": streams,
        "first_frame_ms": [1000 * first for first, *_ in found],
        "fps_of_all": each / seconds,
        "stage_ms": {name: 1000 * sum(stages[name] for *_, stages in found) / each for name in found[0][-1]},
    }


def run_whole(engine: LipSyncEngine, args: argparse.Namespace) -> bool:
    engine.warmup()
    rows = []
    for streams in args.streams:
        row = whole(engine, args.whole, streams, args.chunks)
        rows.append(row)
        stages = ", ".join(f"{name} {ms:.1f}" for name, ms in row["stage_ms"].items())
        print(
            f"{streams} session{'s' * (streams > 1)}: first frame after {max(row['first_frame_ms']):.0f} ms, "
            f"{row['fps_of_all']:.1f} fps of all; ms of a frame: {stages}"
        )
    write(args.json, "stream", args, {"backend": type(engine.backend).__name__, "whole": rows})
    return True


def run(args: argparse.Namespace) -> bool:
    engine = LipSyncEngine.load(args.bundle, backend=args.backend, threads=args.threads)
    if args.whole:
        return run_whole(engine, args)
    results: dict[str, Any] = {"backend": type(engine.backend).__name__}
    passed = True
    if args.against:
        results["relative_error"] = error = difference(
            engine, LipSyncEngine.load(args.against, threads=args.threads), args.chunks
        )
        passed = error <= args.tolerance
        print(f"pictures differ from those of {args.against} by {error:.1e}, {args.tolerance:g} allowed")
    results["rows"] = []
    for streams in args.streams:
        row = measure(engine, streams, args.chunks, args.prepared)
        results["rows"].append(row)
        ms = row["chunk_ms"]
        print(
            f"{streams} stream{'s' * (streams > 1)}: {row['fps_of_all']:.1f} fps of all, "
            f"a chunk takes {ms['p50']:.1f} ms, p95 {ms['p95']:.1f}, p99 {ms['p99']:.1f}"
            f"{'' if row['keeps_up'] else ': too slow to be live'}"
        )
    results["streams_that_fit"] = max((row["streams"] for row in results["rows"] if row["keeps_up"]), default=0)
    if args.trace or args.timeline:
        spans = record(engine, args.trace)
        if args.timeline:
            args.timeline.write_text(timeline.draw(spans, "Chunks in the middle of a stream, as the device timed them"))
    write(args.json, "stream", args, results)
    return passed


def build_parser() -> argparse.ArgumentParser:
    options = parser("stream", __doc__, least={"chunks": 2})
    options.add_argument("--backend", help="default: the one that the bundle is for")
    options.add_argument("--streams", type=positive, nargs="+", default=[1], help="at once (default 1)")
    options.add_argument("--chunks", type=positive, default=40, help="counted, for each stream (default 40)")
    options.add_argument("--whole", type=Path, metavar="VIDEO", help="whole sessions, on this video")
    options.add_argument("--prepared", action="store_true", help="latents of the video in place of its crops")
    options.add_argument("--against", metavar="BUNDLE", help="bundle with the expected pictures")
    options.add_argument("--tolerance", type=float, default=0.05, help="relative error of them (default 0.05)")
    options.add_argument("--trace", type=Path, help="Chrome trace (JSON) of a few chunks; backend tensorrt")
    options.add_argument("--timeline", type=Path, help="the same, drawn (SVG)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
