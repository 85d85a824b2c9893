"""Encodes pictures for a transport: as JPEG, or as H.264 Annex B."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Protocol

import av
import cv2

from ..media import FPS
from ..media.colour import Colour
from ..media.picture import Picture
from ..media.pixel_format import PictureFormat
from .protocol import H264, JPEG

_QUALITY = 85
_KEY_EVERY = 2 * FPS


class FrameEncoder(Protocol):
    """Attributes: kind: of the protocol's binary message."""

    kind: int

    def encode(self, picture: Picture) -> tuple[bytes, bool]:
        """The picture's bytes, and whether it is a key frame."""


class JpegEncoder:
    """One JPEG per picture."""

    kind = JPEG

    def encode(self, picture: Picture) -> tuple[bytes, bool]:
        """See `FrameEncoder`."""
        _, data = cv2.imencode(".jpg", picture.to_ndarray("bgr24"), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        return data.tobytes(), True


class H264Encoder:
    """libx264 without delay: one access unit per picture, with parameter sets at every key frame.

    The last line or column of an odd side is repeated: 4:2:0 chroma covers two by two pixels.
    """

    kind = H264

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width + width % 2, height + height % 2
        self._context = context = av.CodecContext.create("libx264", "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height = self._width, self._height
        context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, FPS), Fraction(FPS)
        context.gop_size, context.max_b_frames, context.thread_count = _KEY_EVERY, 0, 1
        context.options = {"preset": "superfast", "tune": "zerolatency", "crf": "23", "annexb": "1"}
        self._count = 0

    def encode(self, picture: Picture) -> tuple[bytes, bool]:
        """See `FrameEncoder`."""
        stored = picture.converted(live_format(picture.format)).padded(self._width, self._height)
        with stored.timed(self._count, Fraction(1, FPS)) as frame:
            packets = self._context.encode(frame)
        self._count += 1
        return b"".join(bytes(packet) for packet in packets), any(packet.is_keyframe for packet in packets)


def live_format(format: PictureFormat) -> PictureFormat:
    """The format that live clients are sent: 8 bit 4:2:0, BT.709 and limited range, which they assume without tags."""
    colour = replace(format.colour, matrix=Colour().matrix, full_range=False)
    siting = format.siting if "420" in format.name else (0.0, 0.5)
    return PictureFormat("yuv420p", format.width, format.height, colour, siting)


def frame_encoder(kind: str, width: int, height: int) -> FrameEncoder:
    """An encoder for "jpeg" or "h264"."""
    return H264Encoder(width, height) if kind == "h264" else JpegEncoder()
