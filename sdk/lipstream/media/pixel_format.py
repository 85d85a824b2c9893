"""Pixel formats in which pictures are kept: planar Y'CbCr, grey or R'G'B', 8 to 16 bit, with or without alpha."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import av
import numpy as np
from numpy.typing import NDArray

from .colour import BT709, Colour, luma_weights

FORMATS = frozenset(av.video.format.names)  # type: ignore[attr-defined]
"""FFmpeg's names of pixel formats."""

_DEPTHS = (8, 9, 10, 12, 14, 16)
_CHROMA = {(0, 0): "444", (0, 1): "440", (1, 0): "422", (1, 1): "420", (2, 0): "411", (2, 2): "410"}
_MORE_CHROMA = {"440": "444", "411": "422", "410": "420"}

Siting = tuple[float, float]
"""Position (x, y) of the first chroma sample in luma pixels: (0, 0.5) is "left", the default of MPEG-2 and later."""


_SITINGS: dict[Siting, str] = {
    (0.0, 0.5): "left",
    (0.5, 0.5): "center",
    (0.0, 0.0): "topleft",
    (0.5, 0.0): "top",
    (0.0, 1.0): "bottomleft",
    (0.5, 1.0): "bottom",
}


def siting_name(siting: Siting) -> str | None:
    """FFmpeg's name of a chroma position; None if it has none."""
    return _SITINGS.get(siting)


@dataclass(frozen=True)
class PlaneLayout:
    """One plane of a picture.

    Attributes:
        step: (x, y), luma pixels per sample. start: (x, y) of the first sample's centre in luma pixels.
    """

    step: tuple[int, int]
    start: tuple[float, float]

    @property
    def to_picture(self) -> NDArray[np.float64]:
        """float64 [3, 3], pixel centres of the plane -> those of the picture."""
        return np.array([[self.step[0], 0, self.start[0]], [0, self.step[1], self.start[1]], [0, 0, 1]], np.float64)


@dataclass(frozen=True)
class PictureFormat:
    """Size, pixel format and colour of a picture.

    Attributes:
        name: FFmpeg's name of a planar format in native byte order: "yuv420p10le", "gbrap", "gray".
        width, height: pixels.
        colour: matrix, range, primaries and transfer.
        siting: position of the chroma samples; without meaning where chroma is not subsampled.
    """

    name: str
    width: int
    height: int
    colour: Colour = BT709
    siting: Siting = (0.0, 0.5)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {self.name}"

    @cached_property
    def _format(self) -> av.VideoFormat:
        return av.VideoFormat(self.name)

    @cached_property
    def is_rgb(self) -> bool:
        return bool(self._format.is_rgb)

    @cached_property
    def depth(self) -> int:
        """Bits per sample."""
        return int(self._format.components[0].bits)

    @cached_property
    def has_alpha(self) -> bool:
        return any(c.is_alpha for c in self._format.components)

    @cached_property
    def planes(self) -> tuple[PlaneLayout, ...]:
        """The planes in FFmpeg's order: Y', Cb, Cr or G', B', R', and alpha last."""
        full = PlaneLayout((1, 1), (0.0, 0.0))
        step = 1 << _log2(self._format.chroma_width), 1 << _log2(self._format.chroma_height)
        # In a direction without subsampling, chroma and luma coincide.
        start = tuple(s if n > 1 else 0.0 for s, n in zip(self.siting, step, strict=True))
        chroma = PlaneLayout(step, (start[0], start[1]))
        count = len(self._format.components)
        return tuple(chroma if not self.is_rgb and i in (1, 2) else full for i in range(count))

    def shape(self, plane: int) -> tuple[int, int]:
        """(rows, columns) of a plane."""
        x, y = self.planes[plane].step
        return -(-self.height // y), -(-self.width // x)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.depth == 8 else np.uint16

    @cached_property
    def from_rgb(self) -> NDArray[np.float64]:
        """float64 [n, 4]: code values of the planes without alpha = this @ (r, g, b, 1), r, g, b in [0, 1] (H.273)."""
        top = (1 << self.depth) - 1
        if self.is_rgb:
            return np.hstack([np.eye(3)[[1, 2, 0]] * top, np.zeros((3, 1))])
        unit = 1 << (self.depth - 8)
        kr, kb = luma_weights(self.colour.matrix)
        luma = np.array([kr, 1 - kr - kb, kb])
        blue, red = (np.array([0, 0, 1.0]) - luma) / (2 - 2 * kb), (np.array([1.0, 0, 0]) - luma) / (2 - 2 * kr)
        scale = np.array(
            [top, top, top] if self.colour.full_range else [219 * unit, 224 * unit, 224 * unit], np.float64
        )
        start = np.array([0 if self.colour.full_range else 16 * unit, 128 * unit, 128 * unit], np.float64)
        rows = np.column_stack([np.stack([luma, blue, red]) * scale[:, None], start])
        return rows[:1] if len(self.planes) < 3 else rows

    def code_values(self, rgb: tuple[int, int, int]) -> NDArray[np.float32]:
        """float32 [planes without alpha]: a colour, R'G'B' 0..255, in the planes."""
        return np.asarray(self.from_rgb @ (*(x / 255 for x in rgb), 1), np.float32)

    @cached_property
    def to_rgb(self) -> NDArray[np.float64]:
        """float64 [3, n + 1]: r, g, b in [0, 255] = this @ (code values of the planes without alpha, 1)."""
        rows = self.from_rgb
        if len(rows) == 1:
            gain = 255 / rows[0, :3].sum()
            return np.tile([gain, -gain * rows[0, 3]], (3, 1))
        inverse = np.linalg.inv(rows[:, :3]) * 255
        return np.column_stack([inverse, -inverse @ rows[:, 3]])

    def resized(self, width: int, height: int) -> PictureFormat:
        return replace(self, width=width, height=height)

    def turned(self, transposed: bool, mirrored: bool, flipped: bool) -> PictureFormat:
        """Format after transposing, and then mirroring left to right and flipping upside down.

        With `full_chroma` if subsampled chroma would be in a place that FFmpeg has no name for.
        """
        step = self.planes[1].step if len(self.planes) > 2 else (1, 1)
        (x, y), size, name = self.siting, (self.width, self.height), self.name
        if transposed and step == (4, 1):  # its transpose does not exist
            return self.full_chroma.turned(transposed, mirrored, flipped)
        if transposed:
            (x, y), size, step = (y, x), size[::-1], step[::-1]
            if step == (1, 2):
                name = name.replace("422", "440")
            elif step == (2, 1):
                name = name.replace("440", "422")
        if mirrored:
            x = _last(size[0], step[0], x)
        if flipped:
            y = _last(size[1], step[1], y)
        siting = x if step[0] > 1 else 0.0, y if step[1] > 1 else 0.5
        if siting_name(siting) is None or name not in FORMATS:
            return self.full_chroma.turned(transposed, mirrored, flipped)
        return PictureFormat(name, *size, self.colour, siting)

    @property
    def full_chroma(self) -> PictureFormat:
        """The format with as many chroma samples as luma samples."""
        return replace(self, name=re.sub("4(20|22|40|11|10)p", "444p", self.name), siting=(0.0, 0.5))


def _last(length: int, step: int, start: float) -> float:
    """Distance of a row's last sample from its end: where the first one is after mirroring."""
    return length - 1 - ((-(-length // step) - 1) * step + start)


@lru_cache(32)
def planar(name: str) -> str:
    """The planar format that holds everything of pixel format `name`: equal if that is one."""
    found = av.VideoFormat(name)
    alpha = "a" if name == "pal8" or any(c.is_alpha for c in found.components) else ""
    bits = max([8, *(c.bits for c in found.components)])
    depth = next((d for d in _DEPTHS if d >= bits), 16)
    if found.is_rgb or found.is_bayer or name.startswith(("pal8", "mono", "xyz")):
        return _first([f"gbr{alpha}p"], depth)
    if len([c for c in found.components if not c.is_alpha]) == 1 and not alpha:
        return _first(["gray"], depth)
    chroma = _CHROMA.get((_log2(found.chroma_width), _log2(found.chroma_height)), "444")
    return _first([f"yuv{alpha}{chroma}p", f"yuv{alpha}{_MORE_CHROMA.get(chroma, '444')}p", f"yuv{alpha}444p"], depth)


def _first(names: list[str], depth: int) -> str:
    """The first format that exists, with at least `depth` bits."""
    for bits in (d for d in _DEPTHS if d >= depth):
        for name in names:
            full = name if bits == 8 else f"{name}{bits}le"
            if full.replace("gray8", "gray") in FORMATS:
                return full
    raise AssertionError(f"no format of {names} with {depth} bits")


def _log2(size_of: object) -> int:
    """Binary logarithm of a subsampling factor, from PyAV's function of it."""
    return (1024 // int(size_of(1024))).bit_length() - 1  # type: ignore[operator]
