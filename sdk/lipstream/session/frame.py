"""One frame of a session's result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..face import Doubt
from ..media.picture import Image, Picture


@dataclass(frozen=True, eq=False, repr=False)
class Frame:
    """One frame of the result. Two frames are equal only if they are the same object.

    Attributes:
        picture: in the reference's size and pixel format; outside the mouth its samples are the reference's.
        audio: float32 [n, channels], the pushed samples that belong to this frame, at the rate they were pushed with.
        sample_rate: of `audio`, Hz.
        pts: seconds since the session's first frame, index / 25.
        index: 0, 1, 2, ... over the whole session; after `interrupt` it continues at the first frame not shown.
        bypassed: True if the frame is the reference's, untouched, because it shows no face.
        held: True if the face was not found in the reference's frame, and is taken to be where it was before.
        doubt: "covered" if something seems to cover the mouth, "flat" if the face is drawn in flat colours: the mouth
            cannot be right. None otherwise.
        damaged: True if the reference's file is damaged at this frame.
        segment: number of the segment that the frame belongs to, from 0: `flush` and `interrupt` end one.
        end_of_segment: True for the last frame of a flushed segment.
        speaking: True for a frame with sound above -45 dB of full scale, and for seven frames (0.28 s) after it.
        idle: True for a frame without pushed audio; its sound is silence, its segment the next one.
        generated: share of the generated mouth in the picture: 1, or less in a fade from or to an untouched frame.
    """

    picture: Picture
    audio: NDArray[np.float32]
    pts: float
    index: int
    bypassed: bool
    held: bool = False
    doubt: Doubt | None = None
    damaged: bool = False
    segment: int = 0
    end_of_segment: bool = False
    speaking: bool = False
    idle: bool = False
    generated: float = 1.0
    sample_rate: int = 16_000

    def __repr__(self) -> str:
        kind = "idle" if self.idle else "bypassed" if self.bypassed else "speech"
        return f"<Frame {self.index} at {self.pts:.2f} s: {kind}, {len(self.audio)} samples at {self.sample_rate} Hz>"

    @cached_property
    def image(self) -> Image:
        """uint8 [H, W, 3] RGB, converted from `picture` on first use; `picture.to_ndarray` gives other formats."""
        return self.picture.rgb
