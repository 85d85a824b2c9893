"""Clips of a speaking person at the sizes of common video, made from the shipped sample.

The sample, scaled with Lanczos to the full height, is placed in the middle of a background: the same frame, blurred
and stretched over the whole picture. Gaussian grain, new in each frame, makes the encoder's work comparable to that for
a camera's picture: without it x264 would skip most blocks. The sample is played forwards and backwards. The same
arguments give the same pictures. 25 frames per second, H.264 (yuv420p, BT.709), without sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.codec.context import ThreadType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from lipstream import samples
from lipstream.media import ping_pong
from numpy.typing import NDArray

GRAIN = 2.0
"""Standard deviation of the grain, in grey levels of 0..255."""
_BLUR = 24, 20  # width and height to which the background is reduced before it is stretched
_FPS = 25

Picture = NDArray[np.uint8]


def make_clip(path: Path, width: int, height: int, frames: int) -> None:
    """Write a clip of that many frames; width and height in pixels, even."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", _FPS, {"crf": "18", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.thread_type = ThreadType.AUTO  # PyAV's default, slices, is slower
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for picture in pictures(width, height, frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            colour: dict[str, Any] = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
            container.mux(stream.encode(frame.reformat(format="yuv420p", **colour)))
        container.mux(stream.encode(None))


def pictures(width: int, height: int, frames: int, seed: int = 0) -> Iterator[Picture]:
    """The frames of a clip before encoding, uint8 R'G'B' [height, width, 3]."""
    rng = np.random.default_rng(seed)
    with av.open(str(samples.FACE)) as container:
        sample = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
    for step in range(frames):
        placed = _placed(sample[ping_pong(step, len(sample))], width, height)
        grain = np.rint(GRAIN * rng.standard_normal((height, width), np.float32)).astype(np.int16)
        yield np.asarray(cv2.add(placed, cv2.merge([grain] * 3), dtype=cv2.CV_8U), np.uint8)


def _placed(frame: Picture, width: int, height: int) -> Picture:
    """The frame at full height in the middle of its blurred self."""
    reduced = cv2.resize(frame, _BLUR, interpolation=cv2.INTER_AREA)
    background = cv2.resize(reduced, (width, height), interpolation=cv2.INTER_CUBIC)
    shown = min(width, round(frame.shape[1] * height / frame.shape[0]))
    left = (width - shown) // 2
    background[:, left : left + shown] = cv2.resize(frame, (shown, height), interpolation=cv2.INTER_LANCZOS4)
    return np.asarray(background, np.uint8)
