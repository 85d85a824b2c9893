"""Sound at another rate as `librosa.load` gives it, from which the upstream system computes its features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from soxr import ResampleStream


def librosa_blocks(blocks: Iterable[NDArray[np.float32]], rate: int, target: int) -> Iterator[NDArray[np.float32]]:
    """`blocks`, float32 [n, channels] at `rate` Hz, as mono float32 [m] at `target` Hz.

    The mean of the channels, resampled by soxr's high quality: in total ceil(samples * target / rate).

    Raises:
        MissingExtraError: the rates differ, and soxr is not installed.
    """
    mono = (np.ascontiguousarray(block.T).mean(axis=0) for block in blocks)
    if rate == target:
        return mono
    try:
        from soxr import ResampleStream
    except ImportError as error:
        raise MissingExtraError(
            f"sound of {rate} Hz in upstream mode needs the module {error.name!r}, which is not installed",
            expected=f"soxr, or sound of {target} Hz",
            fix="pip install 'lipstream[upstream]'",
        ) from error
    return _resampled(mono, Fraction(target, rate), ResampleStream(rate, target, 1, quality="soxr_hq"))


def _resampled(
    blocks: Iterable[NDArray[np.float32]], ratio: Fraction, stream: ResampleStream
) -> Iterator[NDArray[np.float32]]:
    received = returned = 0
    for block in blocks:
        received += len(block)
        output = stream.resample_chunk(block)
        returned += len(output)
        yield output
    rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    missing = math.ceil(received * ratio) - returned - len(rest)  # soxr rounds the length, librosa fills it up
    yield np.pad(rest, (0, max(0, missing)))
