"""From a frame to the model's crop, and from the generated crop back to the frame: ours, or the upstream system's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import Geometry
from ..media.picture import Image, Picture
from . import upstream
from .alignment import Crop, Matrix, crop
from .compositing import Compositor, Overlay


class FacePipeline(Protocol):
    """Crops and composites the faces of one bundle. Stateless; shared by all sessions."""

    @property
    def overlay(self) -> Callable[[Picture, Image, Matrix], Overlay | None] | None:
        """See `Compositor.overlay`; None if only `composite` can composite."""

    def crop(self, frame: Picture, matrix: Matrix) -> Image:
        """The aligned face, uint8 [S, S, 3], of `frame`; `matrix` [2, 3]: frame -> canvas pixels."""

    def composite(self, frame: Picture, generated: Crop, source: Image, matrix: Matrix, share: float = 1.0) -> Picture:
        """`frame` with `generated` [S, S, 3], float32 in [0, 1] or uint8, in the masked region.

        See `Compositor.composite`.
        """


class LipStreamFacePipeline:
    """See `FacePipeline`: the crop is resampled once, and only the masked region of the frame changes.

    Args:
        keep_mask: float32 [S, S] in [0, 1]: 1 keeps the source.
    """

    def __init__(self, geometry: Geometry, keep_mask: NDArray[np.float32]) -> None:
        self._size, self._box = geometry.crop_size[0], geometry.crop_box
        compositor = Compositor(keep_mask, box=geometry.crop_box)
        self.composite = compositor.composite
        self.overlay = compositor.overlay

    def crop(self, frame: Picture, matrix: Matrix) -> Image:
        """See `FacePipeline`."""
        return crop(frame, matrix, self._size, self._box)


class UpstreamFacePipeline:
    """See `FacePipeline`: crop and compositing of the upstream system.

    Raises:
        ConfigError: the bundle's crop is not the upstream system's, the whole canvas.
    """

    overlay = None

    def __init__(self, geometry: Geometry, keep_mask: NDArray[np.float32]) -> None:
        upstream.check_geometry(geometry.crop_box, geometry.crop_size)
        self._size = geometry.crop_size[0]
        self.composite = upstream.UpstreamCompositor(keep_mask).composite

    def crop(self, frame: Picture, matrix: Matrix) -> Image:
        """See `FacePipeline`."""
        return upstream.crop(frame.rgb, matrix, self._size)
