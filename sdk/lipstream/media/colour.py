"""Colour of a video: which matrix and range convert its Y'CbCr to R'G'B', and back.

Numbers are the code points of ITU-T H.273, the ones FFmpeg, MP4 and H.264 use. Primaries and transfer are copied,
never converted: LipStream works in the R'G'B' of the source (an HDR source is not tone-mapped).
"""

from __future__ import annotations

from dataclasses import dataclass

import av
from av.video.reformatter import ColorRange

_BT709, _FCC, _BT470BG, _SMPTE170M, _SMPTE240M, _BT2020_NCL, _BT2020_CL = 1, 4, 5, 6, 7, 9, 10
_UNSPECIFIED = 2
_LUMA_WEIGHTS = {
    _BT709: (0.2126, 0.0722),
    _FCC: (0.30, 0.11),
    _BT470BG: (0.299, 0.114),
    _SMPTE170M: (0.299, 0.114),
    _SMPTE240M: (0.212, 0.087),
    _BT2020_NCL: (0.2627, 0.0593),
}


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


BT709 = Colour()


def luma_weights(matrix: int) -> tuple[float, float]:
    """(Kr, Kb) of a matrix of `Colour` (H.273, table 4)."""
    return _LUMA_WEIGHTS[matrix]
