"""A short animated picture of a source beside its result, for a page: WebP, every second frame.

python -m benchmarks.animation sdk/lipstream/sample/face.mp4 out/demo.mp4 -o docs/demo.webp
"""

from __future__ import annotations

import argparse
import itertools
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from lipstream.face import FaceTracker
from lipstream.media import FPS, FrameLoop, VideoReader
from numpy.typing import NDArray

_EVERY = 2


def animate(source: Path, result: Path, out: Path, *, seconds: float, side: int, quality: int) -> None:
    """Write `out`: squares of `side` pixels around the face, source on the left, result on the right."""
    results = list(itertools.islice(VideoReader(result), int(seconds * FPS)))
    sources = [picture.rgb for _, picture in FrameLoop(VideoReader(source), len(results))]
    seen = FaceTracker("bypass").track(sources[0])
    x, y = sources[0].shape[1] / 2, sources[0].shape[0] / 2
    size = float(min(sources[0].shape[:2]))
    if seen is not None:
        low, high = seen.landmarks[:, :2].min(0), seen.landmarks[:, :2].max(0)
        (x, y), size = (low + high) / 2, 1.5 * float((high - low).max())
    matrix = np.array([[size / side, 0, x - size / 2], [0, size / side, y - size / 2]])
    with av.open(str(out), "w", format="webp") as container:
        options = {"quality": str(quality), "compression_level": "6", "loop": "0"}
        stream = container.add_stream("libwebp_anim", Fraction(FPS, _EVERY), options)
        stream.width, stream.height, stream.pix_fmt = 2 * side, side, "yuv420p"
        for i, pair in enumerate(list(zip(sources, results, strict=True))[::_EVERY]):
            picture = np.concatenate([_cut(frame, matrix, side) for frame in pair], axis=1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _cut(frame: NDArray[np.uint8], matrix: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    flags = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(frame, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.animation", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the video that was dubbed")
    parser.add_argument("result", type=Path, help="the dubbed video")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="WEBP")
    parser.add_argument("--seconds", type=float, default=6.0, help="from the start (default 6)")
    parser.add_argument("--side", type=int, default=240, help="pixels of each square (default 240)")
    parser.add_argument("--quality", type=int, default=60, help="0 to 100 (default 60)")
    args = parser.parse_args()
    animate(args.source, args.result, args.output, seconds=args.seconds, side=args.side, quality=args.quality)
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
