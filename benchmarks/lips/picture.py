"""How good the picture around the lips of a result is, compared with that of its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from lipstream.bundle import Bundle
from lipstream.face import LipStreamFacePipeline, crop
from lipstream.face.compositing import Compositor
from lipstream.media import Picture
from lipstream_evaluate.texture import border_energy, gradient_energy, luma
from numpy.typing import NDArray

from .tracks import Frames, Image, Lips, Track

Numbers = dict[str, float]
Plane = NDArray[np.float32]

_MOUTH = (130.0, 350.0, 290.0, 510.0)  # of the canvas, around the lips
_WINDOW = 64  # pixels of this window


@dataclass(frozen=True)
class Area:
    """What the pictures of a bundle cover.

    Attributes:
        size: S, of the square crop. box: of the canvas that it shows. token: pixels of a token's side.
        alpha: float32 [S, S], share of the generated picture in the result.
        pipeline: crops and composites.
    """

    size: int
    box: tuple[float, float, float, float]
    token: int
    alpha: Plane
    pipeline: LipStreamFacePipeline

    @classmethod
    def of(cls, bundle: Bundle) -> Area:
        geometry, keep = bundle.manifest.geometry, bundle.constants["mask.composite"]
        size = geometry.crop_size[0]
        tokens = round(geometry.tokens**0.5)
        alpha = Compositor(keep, box=geometry.crop_box).mask.alpha
        return cls(size, geometry.crop_box, size // tokens, alpha, LipStreamFacePipeline(geometry, keep))

    def crops(self, frames: Frames, lips: Lips) -> NDArray[np.float32]:
        """float32 [n, S, S, 3] of the frames in which `lips` were seen."""
        return _crops(frames, lips, self.size, self.box)

    def pasted(self, frames: Frames, lips: Lips) -> Frames:
        """The frames with their own crops pasted back."""
        result = frames.copy()
        for i in np.flatnonzero(lips.seen):
            picture = Picture.of(frames[i])
            true = self.pipeline.crop(picture, lips.matrices[i])
            result[i] = self.pipeline.composite(picture, true, true, lips.matrices[i]).rgb
        return result


def sharpness(result: Frames, source: Frames, lips: Lips) -> float:
    """Gradient energy, the mean square of the luma's differences, around the source's lips, over that of the source."""
    pairs = [(gradient_energy(a), gradient_energy(b)) for a, b in _around(result, source, lips)]
    ours, theirs = np.sum(pairs, axis=0)
    return float(ours / theirs)


def flicker(result: Frames, source: Frames, lips: Lips) -> float:
    """Mean absolute difference to the frame before around the source's lips, over that of the source."""
    ours = theirs = 0.0
    for i in range(1, len(source)):
        if lips.seen[i]:
            area = _inside(lips.areas[i])
            ours, theirs = (
                total + float(cv2.absdiff(frames[i][area], frames[i - 1][area]).mean())
                for total, frames in ((ours, result), (theirs, source))
            )
    return ours / theirs


def psnr(result: Frames, source: Frames, lips: Lips) -> float:
    """Decibels, around the source's lips."""
    errors = [np.square(a.astype(np.float32) - b).mean() for a, b in _around(result, source, lips)]
    return float(10 * np.log10(255**2 / max(1e-6, float(np.mean(errors)))))


def grid(result: Frames, source: Frames, lips: Lips, area: Area) -> float:
    """Blocks: energy across the borders of tokens over that beside them, over the same of the source; 1 without any.

    Measured on the crops, where the picture is generated.
    """
    ours, theirs = (border_energy(area.crops(frames, lips), area.alpha, area.token) for frames in (result, source))
    return ours / theirs


def colour_step(result: Frames, source: Frames, lips: Lips, area: Area) -> float:
    """Step of the colour (0..255) at the edge of the compositing mask that the source does not have.

    For each place on the edge: mean colour of the 4 % of the crop inside less that of the 4 % outside, in the result
    less the same in the source. Mean absolute value over places, colours and frames. NaN if the mask has no edge.
    """
    inside, outside = (_band(mask, area.size / 24) for mask in (area.alpha > 0.95, area.alpha < 0.05))
    edge = (area.alpha >= 0.05) & (area.alpha <= 0.95)
    blur = area.size / 16  # reaches both bands from the edge

    def near(picture: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), blur)[edge], np.float32)

    weights = near(inside), near(outside)
    known = np.minimum(*weights) > 0  # in a small crop a wide edge may hide one side
    if not known.any():
        return float("nan")
    steps = []
    for change in area.crops(result, lips) - area.crops(source, lips):
        within, beyond = (
            near(change * band[..., None])[known] / weight[known][:, None]
            for band, weight in zip((inside, outside), weights, strict=True)
        )
        steps.append(np.abs(within - beyond).mean())
    return float(np.mean(steps))


def identity(result: Frames, source: Frames, lips: Lips, closed: NDArray[np.bool_]) -> float:
    """Correlation of the mouth's luma with the source's own, mean over the frames in which both are `closed`; NaN
    with fewer than three."""
    both = closed & lips.seen
    if both.sum() < 3:
        return float("nan")
    frames = np.flatnonzero(both)
    pairs = (
        luma(_crops(pictures[frames], lips[frames.tolist()], _WINDOW, _MOUTH)).reshape(len(frames), -1)
        for pictures in (result, source)
    )
    ours, theirs = (x - x.mean(axis=1, keepdims=True) for x in pairs)
    return float(
        np.mean(
            (ours * theirs).sum(1) / np.maximum(1e-6, np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))
        )
    )


def look(result: Frames, source: Frames, lips: Lips, closed: NDArray[np.bool_], area: Area) -> Numbers:
    """The measures of a result's picture.

    Args:
        lips: of the source. closed: where they are together in result and source, bool [n].
    """
    return {
        "sharpness": sharpness(result, source, lips),
        "grid": grid(result, source, lips, area),
        "flicker": flicker(result, source, lips),
        "colour_step": colour_step(result, source, lips, area),
        "identity": identity(result, source, lips, closed),
    }


def paste(source: Frames, lips: Lips, area: Area) -> Numbers:
    """Sharpness and PSNR of the source's own crops pasted back: what a perfect network reaches at this crop size."""
    pasted = area.pasted(source, lips)
    return {"paste": sharpness(pasted, source, lips), "paste_psnr": psnr(pasted, source, lips)}


def _around(result: Frames, source: Frames, lips: Lips) -> Iterator[tuple[Image, Image]]:
    """The areas of result and source in the frames with a face."""
    for i in np.flatnonzero(lips.seen):
        area = _inside(lips.areas[i])
        yield result[i][area], source[i][area]


def _inside(area: Track) -> tuple[slice, ...]:
    left, top, right, bottom = np.maximum(0, area).astype(int)
    return np.index_exp[top:bottom, left:right]


def _crops(frames: Frames, lips: Lips, size: int, box: tuple[float, float, float, float]) -> NDArray[np.float32]:
    seen = np.flatnonzero(lips.seen)
    return np.stack([crop(frames[i], lips.matrices[i], size, box) for i in seen]).astype(np.float32)


def _band(mask: NDArray[np.bool_], reach: float) -> Plane:
    """1 in the mask up to `reach` pixels from its edge, else 0."""
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    return (mask & (distance <= reach)).astype(np.float32)
