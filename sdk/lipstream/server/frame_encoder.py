"""Encodes pictures for a transport: as JPEG, or as H.264 Annex B."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from ..media import FPS
from ..media.colour import Colour, from_rgb
from .protocol import H264, JPEG

_QUALITY = 85
_KEY_EVERY = 2 * FPS


class FrameEncoder(Protocol):
    """Attributes: kind: of the protocol's binary message."""

    kind: int

    def encode(self, image: NDArray[np.uint8]) -> tuple[bytes, bool]:
        """uint8 [H, W, 3] RGB -> bytes, and whether it is a key frame."""


class JpegEncoder:
    """One JPEG per picture."""

    kind = JPEG

    def encode(self, image: NDArray[np.uint8]) -> tuple[bytes, bool]:
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        return data.tobytes(), True


class H264Encoder:
    """libx264 without delay: one access unit per picture, with parameter sets at every key frame.

    Pictures with an odd side lose a line or column: 4:2:0 chroma covers two by two pixels.
    """

    kind = H264

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width - width % 2, height - height % 2
        self._context = context = av.CodecContext.create("libx264", "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height = self._width, self._height
        context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, FPS), Fraction(FPS)
        context.gop_size, context.max_b_frames, context.thread_count = _KEY_EVERY, 0, 1
        context.options = {"preset": "superfast", "tune": "zerolatency", "crf": "23", "annexb": "1"}
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._count = 0

    def encode(self, image: NDArray[np.uint8]) -> tuple[bytes, bool]:
        whole = np.ascontiguousarray(image[: self._height, : self._width])
        frame = from_rgb(whole, self._reformatter, Colour(), "yuv420p")
        frame.pts, self._count = self._count, self._count + 1
        packets = self._context.encode(frame)
        return b"".join(bytes(packet) for packet in packets), any(packet.is_keyframe for packet in packets)


def frame_encoder(kind: str, width: int, height: int) -> FrameEncoder:
    """An encoder for "jpeg" or "h264"."""
    return H264Encoder(width, height) if kind == "h264" else JpegEncoder()
