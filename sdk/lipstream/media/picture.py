"""One picture in the pixel format of its source: read in part, changed in part, converted to R'G'B' only on request."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import av
import cv2
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from .._native import blend
from ..errors import ConfigError
from .av_frame import Plane, allocate, convert, planes_of
from .colour import Colour
from .lanczos import resample
from .pixel_format import PictureFormat, PlaneLayout
from .warp import warp

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB 0..255."""

Rgb = tuple[int, int, int]
"""A colour: R'G'B', 0..255."""
ArrayFormat = Literal["rgb24", "bgr24", "rgba", "nv12"]

_FULL_RANGE = Colour(full_range=True)
_THUMBNAIL = 32


class Picture:
    """A picture as its source has it: planes of Y'CbCr, grey or R'G'B', 8 to 16 bit. Immutable, thread-safe.

    Attributes:
        format: size, pixel format and colour.
        planes: the samples, uint8 or uint16 [rows, columns] each, in FFmpeg's order, alpha last. Read-only.
    """

    def __init__(self, frame: av.VideoFrame, format: PictureFormat) -> None:
        """Wrap `frame`, whose memory must not change; `format` describes it, and its pixel format is `format.name`."""
        self.format = format
        self._frame = frame
        self._lock = threading.Lock()
        self.planes: tuple[Plane, ...] = tuple(planes_of(frame, format))
        for plane in self.planes:
            plane.flags.writeable = False

    def __repr__(self) -> str:
        return f"<Picture {self.width}x{self.height} {self.format.name}>"

    @classmethod
    def of(cls, image: Image, what: str = "a frame") -> Picture:
        """A picture of an RGB array, uint8 [H, W, 3]. Raises ConfigError for anything else, which it calls `what`."""
        _check_array(image, what)
        height, width = image.shape[:2]
        format = PictureFormat("gbrp", width, height, _FULL_RANGE)
        frame, (green, blue, red) = allocate(format)
        red[...], green[...], blue[...] = cv2.split(image)
        return cls(frame, format)

    @property
    def width(self) -> int:
        return self.format.width

    @property
    def height(self) -> int:
        return self.format.height

    @property
    def nbytes(self) -> int:
        """Bytes of all planes, without padding."""
        return sum(plane.nbytes for plane in self.planes)

    @property
    def rgb(self) -> Image:
        """A new array, uint8 [H, W, 3] R'G'B' of full range, over black. An HDR picture is not tone-mapped."""
        return self.to_ndarray("rgb24")

    def to_ndarray(self, format: ArrayFormat) -> NDArray[np.uint8]:
        """A new uint8 array: "rgb24", "bgr24" [H, W, 3], "rgba" [H, W, 4], or "nv12" [H * 3 / 2, W], for even sizes.

        All but "rgba" show a picture with alpha over black; see `over` for another colour.
        "nv12" is Y'CbCr 4:2:0 with matrix and range of `format.colour`, BT.709 of limited range for an R'G'B' picture.
        """
        if format not in get_args(ArrayFormat):
            raise ConfigError(f"array format {format!r}", expected=f"one of {', '.join(get_args(ArrayFormat))}")
        if format == "nv12" and (self.width % 2 or self.height % 2):
            raise ConfigError(f"NV12 of {self.width}x{self.height}", expected="an even width and height")
        if self.format.has_alpha and format != "rgba":
            return self.over().to_ndarray(format)
        colour = Colour() if self.format.is_rgb else self.format.colour
        with self._lock:
            converted = convert(self._frame, self.format, PictureFormat(format, self.width, self.height, colour))
        return np.asarray(converted.to_ndarray(), np.uint8)

    def converted(self, format: PictureFormat) -> Picture:
        """The picture in another format, and of another size if that differs; itself if it has that format.

        Over black in a format without alpha: what is transparent must not become visible.
        """
        if format == self.format:
            return self
        if self.format.has_alpha and not format.has_alpha:
            return self.over().converted(format)
        with self._lock:
            return Picture(convert(self._frame, self.format, format), format)

    def view(self, matrix: NDArray[np.float64], width: int, height: int, *, border: bool = True) -> Image:
        """An affine view in R'G'B', uint8 [height, width, 3], to look at; only the part that is seen is converted.

        Args:
            matrix: float64 [2, 3], pixel centres of the picture -> those of the view.
            border: True repeats the picture's border around it; False shows black there.
        """
        black = self.format.from_rgb[:, 3]
        return self._rgb_of(
            warp(plane, matrix @ layout.to_picture, width, height, fill=None if border else float(value))
            for plane, layout, value in zip(self.planes, self.format.planes, black, strict=False)
        )

    def cropped(self, matrix: NDArray[np.float64], width: int, height: int) -> Image:
        """A view to be shown again: sharper than `view`, and slower. The border is repeated around the picture."""
        return self._rgb_of(
            resample(plane, matrix @ layout.to_picture, width, height)
            for plane, layout, _ in zip(self.planes, self.format.planes, self.format.from_rgb, strict=False)
        )

    def _rgb_of(self, layers: Iterable[NDArray[np.float32]]) -> Image:
        """Views of the planes but alpha, float32 [h, w] -> R'G'B', uint8 [h, w, 3]."""
        rgb = np.asarray(cv2.transform(cv2.merge([*layers]), self.format.to_rgb), np.float32)
        np.clip(rgb, 0, 255, out=rgb)
        rgb += 0.5
        return rgb.astype(np.uint8)

    def regions(self, left: int, top: int, width: int, height: int) -> list[PlaneRegion]:
        """The samples that a block of pixels touches, in each plane but alpha; `left`, `top` are of the block."""
        return [
            PlaneRegion(
                _samples_of(layout, 0, left, width, plane.shape[1]),
                _samples_of(layout, 1, top, height, plane.shape[0]),
                layout.step,
                row,
                (1 << self.format.depth) - 1,
            )
            for plane, layout, row in zip(self.planes, self.format.planes, self.format.from_rgb.tolist(), strict=False)
        ]

    def blended(self, regions: Sequence[PlaneRegion], block: NDArray[np.float32]) -> Picture:
        """A new picture with `block` blended in; samples that it does not cover keep their bits.

        A chroma sample takes the mean over the pixels that it stands for, at its position.

        Args:
            regions: of the block.
            block: float32 [h, w, 4]: red, green, blue in [0, 1], times the opacity, and the opacity in [0, 1]; 0 at a
                margin of a pixel around what is opaque, except at the picture's border.
        """
        frame, planes = self._copy()
        for plane, region in zip(planes, regions, strict=False):
            x, y = region.x, region.y
            ends = x.start, y.start, x.stop, y.stop
            first = x.first, y.first
            blend(plane, ends, block, first, region.step, x.weights, y.weights, region.row, region.most)
        return Picture(frame, self.format)

    def patched(self, regions: Sequence[PlaneRegion], samples: Sequence[Plane], share: float = 1.0) -> Picture:
        """A new picture with `samples` in `regions`; with a `share` below 1 between these and its own, rounded."""
        frame, planes = self._copy()
        for plane, region, new in zip(planes, regions, samples, strict=False):
            own = plane[region.at].astype(np.float32)
            mixed = own + np.float32(share) * (new - own) + np.float32(0.5)
            plane[region.at] = new if share == 1 else mixed.astype(plane.dtype)
        return Picture(frame, self.format)

    def turned(self, transposed: bool, mirrored: bool, flipped: bool) -> Picture:
        """The picture transposed, and then mirrored left to right and flipped upside down.

        No sample changes, unless the result's subsampled chroma has no name in FFmpeg: then it is interpolated first.
        """
        if not (transposed or mirrored or flipped):
            return self
        format = self.format.turned(transposed, mirrored, flipped)
        full = self.format.full_chroma
        upsampled = self.converted(full) if format.name == full.name else self
        frame, planes = allocate(format)
        for source, target in zip(upsampled.planes, planes, strict=True):
            source = source.T if transposed else source
            target[...] = source[:: -1 if flipped else 1, :: -1 if mirrored else 1]
        return Picture(frame, format)

    @property
    def is_transparent(self) -> bool:
        """Whether it has an alpha channel with anything but full opacity."""
        return self.format.has_alpha and int(self.planes[-1].min()) < (1 << self.format.depth) - 1

    def over(self, background: Rgb = (0, 0, 0)) -> Picture:
        """The picture without its alpha channel: itself over a colour, R'G'B' 0..255."""
        format = replace(self.format, name=self.format.name.replace("yuva", "yuv").replace("gbra", "gbr"))
        frame, planes = allocate(format)
        opacity = self.planes[-1] / np.float32((1 << format.depth) - 1)
        behind = format.code_values(background)
        for source, target, value in zip(self.planes, planes, behind, strict=False):
            if not self.is_transparent:
                target[...] = source
                continue
            share = cv2.resize(opacity, source.shape[::-1], interpolation=cv2.INTER_AREA)
            target[...] = (value + share * (source - value) + np.float32(0.5)).astype(target.dtype)
        return Picture(frame, format)

    def letterboxed(self, format: PictureFormat) -> Picture:
        """The picture in `format`, scaled to fit into it with its proportions kept, in the middle of black."""
        scale = min(format.width / self.width, format.height / self.height)
        # Edges at whole chroma samples.
        step = format.planes[1].step if len(format.planes) > 2 else (1, 1)
        width, height = (
            min(whole, max(n, round(length * scale / n) * n))
            for whole, length, n in zip((format.width, format.height), (self.width, self.height), step, strict=True)
        )
        inner = self.converted(format.resized(width, height))
        left, top = (
            (whole - n) // (2 * k) * k
            for whole, n, k in zip((format.width, format.height), (width, height), step, strict=True)
        )
        frame, planes = allocate(format)
        values = [*format.code_values((0, 0, 0)), np.float32((1 << format.depth) - 1)]
        for source, target, layout, value in zip(inner.planes, planes, format.planes, values, strict=False):
            target[...] = round(float(value))
            y, x = top // layout.step[1], left // layout.step[0]
            target[y : y + source.shape[0], x : x + source.shape[1]] = source
        return Picture(frame, format)

    def padded(self, width: int, height: int) -> Picture:
        """The picture with its last column and row repeated up to `width` and `height`."""
        if (width, height) == (self.width, self.height):
            return self
        format = self.format.resized(width, height)
        frame, planes = allocate(format)
        for source, target in zip(self.planes, planes, strict=True):
            more = [(0, wanted - length) for wanted, length in zip(target.shape, source.shape, strict=True)]
            target[...] = np.pad(source, more, mode="edge")
        return Picture(frame, format)

    def thumbnail(self) -> NDArray[np.float32]:
        """Brightness of some 32 x 32 of its pixels, 0 to 255."""
        scale = 255 / ((1 << self.format.depth) - 1)
        planes = self.planes[:3] if self.format.is_rgb else self.planes[:1]
        rows, columns = (max(1, length // _THUMBNAIL) for length in (self.height, self.width))
        seen = np.stack([plane[::rows, ::columns] for plane in planes])
        return np.asarray(seen.mean(axis=0) * scale, np.float32)

    def to_frame(self) -> av.VideoFrame:
        """A copy as PyAV's frame, without a time stamp."""
        return self._copy()[0]

    @contextmanager
    def timed(self, pts: int, time_base: Fraction) -> Iterator[av.VideoFrame]:
        """The picture as PyAV's frame with a time stamp, to be encoded inside; not by two threads at a time."""
        with self._lock:
            self._frame.pts, self._frame.time_base = pts, time_base
            self._frame.pict_type = PictureType.NONE  # else the encoder repeats the source's choice
            if not self.format.is_rgb:  # some encoders write the tags of the frame, not those of the stream
                colour = self.format.colour
                self._frame.colorspace, self._frame.color_primaries = colour.matrix, colour.primaries
                self._frame.color_trc = colour.transfer
                self._frame.color_range = ColorRange.JPEG if colour.full_range else ColorRange.MPEG
            yield self._frame

    def _copy(self) -> tuple[av.VideoFrame, list[Plane]]:
        frame, planes = allocate(self.format)
        for source, target in zip(self.planes, planes, strict=True):
            target[...] = source
        return frame, planes


@dataclass(frozen=True)
class AxisSamples:
    """The samples of a plane that a block touches along an axis.

    Attributes:
        start, stop: their range. first: the block's first pixel in the mean of sample `start`. weights: of that pixel
            and those after it: the share of each in the pixels that a sample stands for, centred at its position.
    """

    start: int
    stop: int
    first: int
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class PlaneRegion:
    """The samples of a plane that a block touches, and what they become: see `_native.blend`.

    Attributes:
        x, y: along the axes. step: pixels from sample to sample, along x and y. row: of the matrix from R'G'B' in
            [0, 1]. most: the largest value.
    """

    x: AxisSamples
    y: AxisSamples
    step: tuple[int, int]
    row: list[float]
    most: int

    @property
    def at(self) -> tuple[slice, slice]:
        """The index of the samples in their plane."""
        return slice(self.y.start, self.y.stop), slice(self.x.start, self.x.stop)

    @property
    def shape(self) -> tuple[int, int]:
        return max(0, self.y.stop - self.y.start), max(0, self.x.stop - self.x.start)


def _samples_of(layout: PlaneLayout, axis: int, origin: int, size: int, length: int) -> AxisSamples:
    """The samples along `axis` (0 is x) of a plane with `length`, for a block of `size` pixels from `origin` on."""
    step, centre = layout.step[axis], layout.start[axis]
    low, high = (centre - step / 2, centre + step / 2) if step > 1 else (centre - 0.5, centre + 0.5)
    spots = np.arange(math.floor(low + 0.5), math.ceil(high - 0.5) + 1)
    weights = np.minimum(high, spots + 0.5) - np.maximum(low, spots - 0.5)
    start = max(0, (origin - int(spots[-1])) // step)
    stop = min(length, -(-(origin + size - int(spots[0])) // step))
    return AxisSamples(start, stop, start * step + int(spots[0]) - origin, (weights / step).astype(np.float32))


def check_colour(colour: object) -> None:
    """Raise ConfigError unless `colour` is three whole numbers, 0..255."""
    parts = colour if isinstance(colour, tuple | list) else ()
    if len(parts) != 3 or not all(isinstance(x, int | np.integer) and 0 <= x <= 255 for x in parts):
        raise ConfigError(f"background={colour!r}", expected="red, green, blue, 0..255 each, such as (0, 255, 0)")


def as_picture(picture: Picture | Image, what: str = "a frame") -> Picture:
    """`picture`, or the picture of an RGB array. Raises ConfigError for anything else, which it calls `what`."""
    return picture if isinstance(picture, Picture) else Picture.of(picture, what)


def _check_array(image: Any, what: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{getattr(image, 'dtype', type(image).__name__)} {list(np.shape(image))}"
        raise ConfigError(f"{what} is {found}", expected="uint8 [height, width, 3], RGB 0..255")
    if not image.size:
        raise ConfigError(f"{what} is {list(image.shape)}", expected="at least one pixel")
