"""Video and audio files: reading at 25 frames per second, looping, sample rates, writing."""

from __future__ import annotations

from .audio import AudioInfo, AudioReader, read_audio, to_float, to_int16
from .colour import Colour
from .loop import FrameLoop, ping_pong
from .picture import Picture
from .pixel_format import PictureFormat
from .reader import FPS, VideoInfo, VideoReader
from .resample import StreamResampler
from .spool import FrameSpool
from .threads import limit_threads
from .writer import VideoWriter, ensure_distinct

__all__ = [
    "FPS",
    "AudioInfo",
    "AudioReader",
    "Colour",
    "FrameLoop",
    "FrameSpool",
    "Picture",
    "PictureFormat",
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
