"""Frames of PyAV: their planes as arrays, and conversion with explicit colour and chroma positions."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from .pixel_format import PictureFormat, Siting, siting_name

_MOST = 8  # scalers a thread keeps
# Without the last two swscale is off by up to three levels.
_FLAGS = "bilinear+full_chroma_int+accurate_rnd"
_MATRIX = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc"}
_RAMP, _SLOPE = 8, 16  # samples, and code values a sample
Plane = NDArray[np.uint8] | NDArray[np.uint16]

_kept = threading.local()


def convert(frame: av.VideoFrame, source: PictureFormat, target: PictureFormat) -> av.VideoFrame:
    """A new frame in `target`, of another size if that differs; `source` describes `frame`, whose time stamp changes.

    R'G'B' is full range on both sides. Chroma that is at none of FFmpeg's six positions is taken as "left".
    """
    scalers: OrderedDict[tuple[int, PictureFormat, PictureFormat], _Scaler] = _kept.__dict__.setdefault(
        "scalers", OrderedDict()
    )
    key = os.getpid(), source, target  # a graph does not survive a fork
    scaler = scalers.pop(key, None) or _Scaler(source, target)
    scalers[key] = scaler
    if len(scalers) > _MOST:
        scalers.popitem(last=False)
    return scaler(frame)


class _Scaler:
    """FFmpeg's filter "scale" from one format to another. Not thread-safe."""

    def __init__(self, source: PictureFormat, target: PictureFormat) -> None:
        size = [f"w={target.width}", f"h={target.height}", f"flags={_FLAGS}"]
        self._graph = graph = av.filter.Graph()
        graph.threads = 1
        self._frames = 0
        graph.link_nodes(
            graph.add_buffer(
                width=source.width, height=source.height, format=av.VideoFormat(source.name), time_base=Fraction(1)
            ),
            graph.add("scale", ":".join([*size, *_side("in", source), *_side("out", target)])),
            graph.add("format", target.name),
            graph.add("buffersink"),
        )
        graph.configure()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        # The filter drops or delays frames whose time stamps do not increase.
        self._frames += 1
        frame.pts, frame.time_base = self._frames, Fraction(1)
        self._graph.vpush(frame)
        return self._graph.vpull()


def siting_of(frame: av.VideoFrame, format: PictureFormat) -> Siting:
    """Position of the chroma samples of a decoded frame, which is kept in `format`, planar.

    PyAV does not show this property, but FFmpeg's scaler applies it: measured on ramps in place of the chroma. A
    property that is not set counts as "center", as in the scaler.
    """
    siting = [0.0, 0.5]
    step = format.planes[1].step if len(format.planes) > 2 else (1, 1)
    if step == (1, 1):
        return siting[0], siting[1]
    frame = VideoReformatter().reformat(frame, format=format.name)
    frame.make_writable()
    _, *chroma = planes_of(frame, format)[:3]
    kept = [plane.copy() for plane in chroma]
    for axis, plane in enumerate(chroma):
        ramp = np.minimum(np.arange(plane.shape[1 - axis]), _RAMP) * _SLOPE
        plane[...] = ramp[:, None] if axis else ramp
    flags = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    full = VideoReformatter().reformat(frame, format=format.full_chroma.name, interpolation=flags)
    for axis, (seen, size) in enumerate(zip(planes_of(full, format.full_chroma)[1:3], step, strict=True)):
        at = size * _RAMP // 2
        if size > 1 and chroma[0].shape[1 - axis] > _RAMP:
            value = float(seen[(at, 0) if axis else (0, at)])
            siting[axis] = round(2 * (at - size * value / _SLOPE)) / 2
    for plane, samples in zip(chroma, kept, strict=True):
        plane[...] = samples
    return siting[0], siting[1]


def allocate(format: PictureFormat) -> tuple[av.VideoFrame, list[Plane]]:
    """A frame of undefined content, and its planes to be written."""
    frame = av.VideoFrame(format.width, format.height, format.name)
    return frame, planes_of(frame, format)


def planes_of(frame: av.VideoFrame, format: PictureFormat) -> list[Plane]:
    """The planes of a frame as arrays [rows, columns] of its memory, alpha last; `format`, planar, describes it."""
    views: list[Plane] = []
    for index, plane in enumerate(frame.planes):
        rows, columns = format.shape(index)
        samples: Plane = np.frombuffer(memoryview(plane), format.dtype)  # type: ignore[assignment]
        views.append(samples.reshape(-1, plane.line_size // samples.itemsize)[:rows, :columns])
    return views


def _side(side: str, of: PictureFormat) -> list[str]:
    full = of.is_rgb or of.colour.full_range
    options = [f"{side}_range={'pc' if full else 'tv'}"]
    if not of.is_rgb:
        options.append(f"{side}_color_matrix={_MATRIX[of.colour.matrix]}")
        options.append(f"{side}_chroma_loc={siting_name(of.siting) or 'left'}")
    return options
