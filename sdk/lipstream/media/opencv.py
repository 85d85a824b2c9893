"""R'G'B' as `cv2.VideoCapture` of OpenCV up to 4.12 gives it, from which the upstream system takes its pictures.

swscale's fast path: chroma samples are repeated, the matrix is always that of BT.601, and the range is the one that the
name of the pixel format states, whatever the file's tags say. OpenCV 4.13 and later convert by the tags.
"""

from __future__ import annotations

from dataclasses import replace

import av
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from .colour import Colour
from .pixel_format import PictureFormat

_BT601 = Colour(matrix=6, primaries=2, transfer=2)


def opencv_format(format: PictureFormat) -> PictureFormat:
    """`format` after the conversion, to be written with the matrix that it was read with."""
    return replace(format, name="gbrp", colour=_BT601, siting=(0.0, 0.5))


def opencv_frame(frame: av.VideoFrame) -> av.VideoFrame:
    """A decoded frame in R'G'B' (gbrp), without alpha."""
    full = frame.format.name.startswith("yuvj")
    converted = VideoReformatter().reformat(
        frame,
        format="bgr24",  # swscale rounds differently for RGB
        interpolation=Interpolation.BICUBIC,
        src_colorspace=Colorspace.ITU601,
        dst_colorspace=Colorspace.ITU601,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    return VideoReformatter().reformat(converted, format="gbrp", threads=1)  # the fast path has no planes
