"""Side data of decoded frames: how a picture is to be turned, and its HDR metadata."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type

Turn = tuple[bool, bool, bool]
"""What makes a stored picture upright: whether to transpose it, then to mirror it, and to flip it upside down."""

_READ = ("DISPLAYMATRIX", "MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
_TYPES = 64  # FFmpeg 8.1 has 33 types
_ORIENTATION = 0x0112
_TURNS: dict[int, Turn] = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
# Pictures whose EXIF orientation FFmpeg does not turn into a display matrix.
_EXIF_ONLY = ("png_pipe", "webp_pipe", "tiff_pipe")


def side_data_of(frame: av.VideoFrame) -> dict[str, bytes]:
    """The side data that LipStream reads, by PyAV's names of their types.

    PyAV cannot read any side data of a frame that has a type which it does not know, such as EXIF. So all other types
    are removed first, from a reference to the frame.
    """
    graph = av.filter.Graph()
    graph.threads = 1
    kept: set[Any] = {Type[name].value for name in _READ}
    others = [graph.add("sidedata", f"mode=delete:type={i}") for i in range(_TYPES) if i not in kept]
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    graph.link_nodes(source, *others, graph.add("buffersink")).configure()
    graph.vpush(frame)
    found: Any = graph.vpull().side_data
    return {name: bytes(data) for name in _READ if (data := found.get(name)) is not None}


def turn_of(side_data: dict[str, bytes], format: str, path: Path) -> Turn:
    """By the display matrix of the first frame; in formats of pictures for which FFmpeg sets none, by their EXIF.

    Args:
        format: FFmpeg's name of the container.
    """
    if "DISPLAYMATRIX" in side_data:
        # x' = a x + c y, y' = b x + d y in 16.16 fixed point
        a, b, _, c, d, *_ = np.frombuffer(side_data["DISPLAYMATRIX"], np.int32).tolist()
        transposed = abs(b) > abs(a)
        if transposed:
            a, d = c, b
        return transposed, a < 0, d < 0
    if format not in _EXIF_ONLY:
        return False, False, False
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return _TURNS.get(picture.getexif().get(_ORIENTATION, 1), (False, False, False))
    except Exception:  # damaged metadata must not keep the picture from being read
        return False, False, False
