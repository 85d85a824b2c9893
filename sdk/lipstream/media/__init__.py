"""Video and audio files: reading at 25 frames per second, looping, sample rates, writing."""

from __future__ import annotations

from lipstream.media.audio import AudioInfo, AudioReader, read_audio, to_float, to_int16
from lipstream.media.colour import Colour
from lipstream.media.loop import FrameLoop, ping_pong
from lipstream.media.reader import FPS, VideoInfo, VideoReader
from lipstream.media.resample import StreamResampler
from lipstream.media.spool import FrameSpool
from lipstream.media.threads import limit_threads
from lipstream.media.writer import VideoWriter, ensure_distinct

__all__ = [
    "FPS",
    "AudioInfo",
    "AudioReader",
    "Colour",
    "FrameLoop",
    "FrameSpool",
    "StreamResampler",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "ensure_distinct",
    "limit_threads",
    "ping_pong",
    "read_audio",
    "to_float",
    "to_int16",
]
