"""Which frame of a person's video becomes the identity of the student's streams.

A student takes the look of lips and teeth from one frame, by default a stream's first, whatever the mouth does there. A
closed mouth shows no teeth, and a mouth of few edges gives results of few.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from lipstream_evaluate.texture import gradient_energy
from lipstream_models.parts import StudentParts
from numpy.typing import NDArray
from torch import Tensor

from ..codec import encode_clip
from .footage import Run
from .measure import mouth

BANDS = {"closed": (0.03, 0.15), "speaking": (0.4, 0.6), "open": (0.7, 0.85), "teeth": (0.85, 0.97)}
"""Mouths by their edges, as shares of all frames from the one of the fewest: closed lips have few, teeth the most. The
ends are left out, where pictures are blurred or disturbed."""


def candidates(parts: StudentParts, runs: list[Run]) -> Iterator[Tensor]:
    """Latents [C, 1, h, w], for each of `BANDS` of the frame that is nearest to its median picture."""
    encoder = parts.codec("encoder")
    assert encoder
    crops = np.concatenate([run.crops for run in runs])
    mouths = crops[:, *mouth(parts)]
    order = np.argsort([gradient_energy(picture) for picture in mouths])
    for first, last in BANDS.values():
        band = order[int(first * len(order)) : int(last * len(order)) + 1]
        crop = crops[band[_central(mouths[band])]]
        yield encode_clip(encoder, crop[None])[:, :1].to(torch.float32)


def _central(pictures: NDArray[np.uint8]) -> int:
    """The index of the picture that is nearest to the median of `pictures` [n, H, W, 3]."""
    distances = np.abs(pictures - np.median(pictures, axis=0)).mean((1, 2, 3))
    return int(distances.argmin())
