"""Interlaced frames -> progressive ones, one per frame."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av


def deinterlaced(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Each interlaced frame through FFmpeg's "bwdif"; progressive ones as they are, all with their time stamps.

    A frame is yielded once the next one is known. The filter starts anew where size or pixel format changes.
    """
    graph: av.filter.Graph | None = None
    form: tuple[int, int, str] | None = None
    for frame in frames:
        found = frame.width, frame.height, frame.format.name
        if found != form:
            if graph is not None:
                yield from _rest(graph)
            graph, form = _bwdif(frame), found
        assert graph is not None
        graph.vpush(frame)
        yield from _ready(graph)
    if graph is not None:
        yield from _rest(graph)


def _bwdif(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 90_000)
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _ready(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return


def _rest(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    graph.vpush(None)
    yield from _ready(graph)
