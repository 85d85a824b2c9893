"""Colour of a video: which matrix and range turn its Y'CbCr into R'G'B', and back.

Numbers are the code points of ITU-T H.273, the ones FFmpeg, MP4 and H.264 use. Primaries and transfer are copied,
never converted: LipStream works in the R'G'B' of the source (an HDR source is not tone-mapped).
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

_BT709, _FCC, _BT470BG, _SMPTE170M, _SMPTE240M, _BT2020_NCL, _BT2020_CL = 1, 4, 5, 6, 7, 9, 10
_UNSPECIFIED = 2
# SWS_BILINEAR | SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND: without the last two swscale is off by up to three levels.
_FLAGS = 0x2 | 0x2000 | 0x40000


@dataclass(frozen=True)
class Colour:
    """Colour tags of a Y'CbCr video (H.273 code points). The default is BT.709, limited range.

    Attributes:
        matrix: 1 BT.709, 5 and 6 BT.601, 7 SMPTE 240M, 9 BT.2020; never "unspecified".
        primaries: 2 = unspecified.
        transfer: 2 = unspecified.
        full_range: True for 0..255 (JPEG), False for 16..235 (MPEG).
    """

    matrix: int = _BT709
    primaries: int = _BT709
    transfer: int = _BT709
    full_range: bool = False

    @staticmethod
    def of(frame: av.VideoFrame) -> Colour:
        """Colour of a decoded frame. An unspecified matrix is guessed as mpv does: BT.709 from 1280 wide or above 576
        lines, else BT.601; an unspecified range is limited. An R'G'B' frame has the default colour."""
        name = frame.format.name
        if frame.format.is_rgb or name == "pal8":
            return Colour()
        grey = name.startswith(("gray", "ya"))
        full = name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
        if grey and frame.color_range == ColorRange.UNSPECIFIED:
            full = True
        matrix = int(frame.colorspace)
        if matrix == _BT2020_CL:
            matrix = _BT2020_NCL
        elif matrix not in (_BT709, _FCC, _BT470BG, _SMPTE170M, _SMPTE240M, _BT2020_NCL):
            matrix = _BT709 if frame.width >= 1280 or frame.height > 576 else _SMPTE170M
        return Colour(matrix, int(frame.color_primaries), int(frame.color_trc), full)


def to_rgb(
    frame: av.VideoFrame, reformatter: VideoReformatter, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """R'G'B' of a decoded frame, uint8 [H, W, 3], full range; scaled to `size` (width, height) if it differs."""
    colour = Colour.of(frame)
    if not frame.format.is_rgb:
        frame.colorspace = colour.matrix
        frame.color_range = ColorRange.JPEG if colour.full_range else ColorRange.MPEG
    width, height = size or (frame.width, frame.height)
    rgb = reformatter.reformat(
        frame, width=width, height=height, format="rgb24", dst_color_range=ColorRange.JPEG, interpolation=_FLAGS
    )
    image = np.asarray(rgb.to_ndarray(), np.uint8)
    return image.copy() if rgb is frame else image  # for R'G'B' the array is the decoder's memory


def from_rgb(
    image: NDArray[np.uint8], reformatter: VideoReformatter, colour: Colour, pixel_format: str
) -> av.VideoFrame:
    """Frame in `pixel_format` with the matrix and range of `colour`, from R'G'B' uint8 [H, W, 3]."""
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    frame.colorspace = colour.matrix
    frame.color_range = ColorRange.JPEG
    full = colour.full_range or pixel_format == "bgr0"
    return reformatter.reformat(
        frame,
        format=pixel_format,
        dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        interpolation=_FLAGS,
    )
