"""Are face tracking and compositing fast enough for a 1080p source on one core?

Every frame of a 1080p video is tracked, aligned and cropped to 512 x 512, and a generated crop (the crop itself,
blurred) is pasted back through a mask as large as the released one. The default video is the bundled one, enlarged and
moved by smooth noise: once to 0.7 of the height, a head of about 400 pixels, and once to the full height, a close-up.
Each step is timed per frame on one thread, without reading and writing the video. The benchmark passes if the median
frame of the first video takes at most 1/60 s in total.

--insightface FOLDER also reports how far the three alignment points are from those of the released system, which uses
InsightFace's models (for non-commercial research only): the median distance divided by the distance of the brows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lipstream import samples
from lipstream.face import FaceTracker, alignment_points, crop
from lipstream.face.compositing import Compositor
from lipstream.face.insightface import InsightFaceTracker, released_points
from lipstream.media import Picture, VideoReader
from numpy.typing import NDArray
from tqdm import tqdm

from .common import in_fresh_process, main, parser, spread, write

WIDTH, HEIGHT, CROP = 1920, 1080, 512
WANTED = 60.0
"""Frames per second."""
FILLS = (0.7, 1.0)
"""Height of the enlarged video over the frame's."""

Image = NDArray[np.uint8]


def scene(video: Path, frames: int, fill: float = 1.0) -> Iterator[Picture]:
    """Frames [1080, 1920, 3]: the video's, enlarged to `fill` of the height, moving over a still background."""
    rng = np.random.default_rng(0)
    background = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    pictures = [np.asarray(frame, np.uint8) for frame, _ in zip(VideoReader(video), range(100), strict=False)]
    for i in range(frames):
        picture = pictures[i % len(pictures)]
        height = round(fill * HEIGHT)
        width = round(picture.shape[1] * height / picture.shape[0])
        large = cv2.resize(picture, (min(width, WIDTH), height), interpolation=cv2.INTER_CUBIC)
        left = round((WIDTH - large.shape[1]) * (0.5 + 0.3 * np.sin(i / 40)))
        frame = np.asarray(background, np.uint8).copy()
        frame[HEIGHT - height :, left : left + large.shape[1]] = large
        yield frame


def keep_mask() -> NDArray[np.float32]:
    """Similar to the released mask: everything above the eyes and outside cheeks and chin is kept."""
    mask = np.ones((CROP, CROP), np.float32)
    cv2.ellipse(mask, (CROP // 2, 7 * CROP // 12), (CROP * 46 // 100, CROP * 36 // 100), 0, 0, 180, 0, -1)
    cv2.rectangle(mask, (CROP // 24, 3 * CROP // 8), (CROP * 23 // 24, 7 * CROP // 12), 0, -1)
    return mask


def measure(video: Path, frames: int, fill: float) -> dict[str, list[float]]:
    """Milliseconds of each step for each frame with a face."""
    cv2.setNumThreads(1)
    tracker, compositor = FaceTracker(), Compositor(keep_mask())
    steps: dict[str, list[float]] = {"track": [], "crop": [], "composite": [], "all": []}
    for frame in tqdm(
        map(Picture.of, scene(video, frames, fill)), total=frames, desc="frames", unit="frame", disable=None
    ):
        start = time.perf_counter()
        face = tracker.track(frame)
        tracked = time.perf_counter()
        if face is None:
            continue
        aligned = crop(frame, face.matrix, CROP)
        cropped = time.perf_counter()
        generated = cv2.blur(aligned, (5, 5)).astype(np.float32) / 255
        ready = time.perf_counter()
        compositor.composite(frame, generated, aligned, face.matrix)
        end = time.perf_counter()
        for name, seconds in (
            ("track", tracked - start),
            ("crop", cropped - tracked),
            ("composite", end - ready),
            ("all", end - ready + cropped - start),
        ):
            steps[name].append(1e3 * seconds)
    return steps


def alignment(video: Path, frames: int, models: Path) -> list[float]:
    """Median distances of left brow, right brow and nose from InsightFace's, in distances between its brows."""
    ours, theirs = FaceTracker("bypass", smooth=False), InsightFaceTracker(models, "bypass")
    rows = []
    for frame in tqdm(scene(video, frames), total=frames, desc="alignment", unit="frame", disable=None):
        a, b = ours.track(frame), theirs.track(frame)
        if a and b:
            points, wanted = alignment_points(a.landmarks), released_points(b.landmarks)
            rows.append(np.linalg.norm(points - wanted, axis=1) / np.linalg.norm(wanted[1] - wanted[0]))
    return [float(x) for x in np.median(rows, axis=0)] if rows else []


def run(args: argparse.Namespace) -> bool:
    frames = 30 if args.quick else args.frames
    results: dict[str, Any] = {}
    print(f"{frames} frames of {WIDTH} x {HEIGHT} on one thread; median ms per frame (least, most)")
    for fill in FILLS:
        steps = in_fresh_process(measure, args.video, frames, fill)
        if not steps["all"]:
            print(f"no face in {args.video}", file=sys.stderr)
            return False
        found = {name: spread(times) for name, times in steps.items()}
        results[f"{fill:g}"] = found | {"fps": 1e3 / found["all"]["median"]}
        cells = (f"{name} {x['median']:.2f} ({x['min']:.2f}, {x['max']:.2f})" for name, x in found.items())
        print(f"  video to {fill:.1f} of the height: {', '.join(cells)}: {results[f'{fill:g}']['fps']:.0f} fps")
    if args.insightface:
        results["alignment"] = in_fresh_process(alignment, args.video, frames, args.insightface)
        print("from InsightFace's points:", ", ".join(f"{100 * x:.1f} %" for x in results["alignment"]))
    write(args.json, "faces", args, results)
    return bool(results[f"{FILLS[0]:g}"]["fps"] >= WANTED)


def build_parser() -> argparse.ArgumentParser:
    options = parser("faces", __doc__, bundle=False)
    options.add_argument("--video", type=Path, default=samples.FACE, help="with a face (default: the bundled sample)")
    options.add_argument("--frames", type=int, default=250, help="how many (default 250)")
    options.add_argument("--insightface", type=Path, metavar="FOLDER", help="its models, to compare alignment with")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
