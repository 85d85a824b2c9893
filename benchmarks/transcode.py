"""A plain transcode: decode a video and encode the same pictures, with nothing in between.

Every program that changes the pictures of a video does at least this work, so its time is the yardstick for a dub of
the same file. One thread decodes, another encodes, a bounded queue is between them, and both codecs use as many threads
as FFmpeg's command line would choose. The encoder gets the decoder's own frames, in the pixel format of the source.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
from av.codec.context import ThreadType
from av.container import OutputContainer
from av.video.frame import PictureType
from lipstream.ahead import Ahead

from .common import memory_mib

_FPS = 25  # of everything that LipStream writes; not imported from there: this process loads no more than it needs
_AHEAD = 8  # decoded frames that may wait for the encoder
_AAC_BITS_PER_CHANNEL = 96_000  # as in a dub
_LAYOUTS = {1: "mono", 2: "stereo"}  # WAV files leave the layout open, which the encoder refuses


def measure(video: Path, audio: Path, frames: int, preset: str, crf: int) -> dict[str, Any]:
    """One transcode in this process; seconds are wall time, memory is in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        transcode(video, audio, Path(folder) / "out.mp4", frames, preset, crf)
        seconds = time.perf_counter() - start
    return {
        "fps": frames / seconds,
        "seconds": seconds,
        "frames": frames,
        "peak_memory_mib": memory_mib("VmHWM"),
    }


def transcode(video: Path, audio: Path, output: Path, frames: int, preset: str, crf: int) -> None:
    """Write `frames` pictures of the video, repeated from the start if it is shorter, and the audio, as H.264 and AAC.

    The pictures are counted at 25 per second, whatever the rate of the video.
    """
    with av.open(str(output), "w", options={"movflags": "+faststart"}) as target:
        with av.open(str(video)) as source:
            given = source.streams.video[0].codec_context
            stream = target.add_stream("libx264", _FPS, {"crf": str(crf), "preset": preset})
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = given.width, given.height, given.pix_fmt
            context.colorspace, context.color_range = given.colorspace, given.color_range
            context.color_primaries, context.color_trc = given.color_primaries, given.color_trc
            _choose_threads(context)
        _encode_audio(audio, target)
        with Ahead(islice(_decoded(video), frames), _AHEAD) as decoded:
            for index, frame in enumerate(decoded):
                # The encoder would repeat the source's choice of I, P and B frames.
                frame.pict_type = PictureType.NONE
                frame.pts, frame.time_base = index, Fraction(1, _FPS)
                target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


def _choose_threads(context: av.CodecContext) -> None:
    """FFmpeg's own choice; PyAV's default is slices, which x264 encodes more slowly and with more bits."""
    context.thread_count, context.thread_type = 0, ThreadType.AUTO


def _decoded(video: Path) -> Iterator[av.VideoFrame]:
    """The frames of the video, over and over."""
    while True:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            _choose_threads(stream.codec_context)
            yield from container.decode(stream)


def _encode_audio(audio: Path, target: OutputContainer) -> None:
    """All of it before the pictures: it is small, and the muxer orders the packets."""
    with av.open(str(audio)) as source:
        given = source.streams.audio[0]
        layout = _LAYOUTS.get(given.channels, given.layout.name)
        track = target.add_stream("aac", rate=given.rate, layout=layout)
        track.bit_rate = _AAC_BITS_PER_CHANNEL * given.channels
        for samples in source.decode(given):
            target.mux(track.encode(samples))
        target.mux(track.encode(None))
