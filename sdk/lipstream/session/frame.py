"""One frame of a session's result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of the result. Two frames are equal only if they are the same object.

    Attributes:
        image: uint8 [H, W, 3] RGB, of the reference's size.
        audio: float32 [n, channels], the pushed samples that belong to this frame, at the rate they were pushed with.
        pts: seconds since the session's first frame, index / 25.
        index: 0, 1, 2, ... over the whole session.
        bypassed: True if the frame is the reference's, untouched, because it shows no face.
        damaged: True if the reference's file is damaged at this frame.
        segment: number of the segment that the frame belongs to, from 0: `flush` and `interrupt` end one.
        end_of_segment: True for the last frame of a flushed segment.
        speaking: True while there is sound above -45 dB in the frame, and for a third of a second after it.
        idle: True for a frame without pushed audio; its sound is silence, its segment the next one.
        generated: share of the generated mouth in the picture: 1, or less in a fade from or to an untouched frame.
    """

    image: NDArray[np.uint8]
    audio: NDArray[np.float32]
    pts: float
    index: int
    bypassed: bool
    damaged: bool = False
    segment: int = 0
    end_of_segment: bool = False
    speaking: bool = False
    idle: bool = False
    generated: float = 1.0
