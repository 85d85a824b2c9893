"""The sound of a session that was pushed and not sent to the client yet.

A session that generates too slowly keeps the sound with the frames it has not made. The server has its own copy, so
that it can send sound on time without pictures, and give the session only what is to be spoken later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..media import FPS

Samples = NDArray[np.int16]


@dataclass
class _Segment:
    number: int
    pieces: deque[Samples] = field(default_factory=deque)
    samples: int = 0
    ended: bool = False


class UnplayedSound:
    """Segments of sound; `number` counts them as the client does, whatever the session was given again.

    Args:
        rate: Hz. channels: of every piece.

    Attributes:
        seconds: of all sound.
    """

    def __init__(self, rate: int, channels: int) -> None:
        self._rate, self._channels = rate, channels
        self._segments: deque[_Segment] = deque()
        self._next = 0

    @property
    def seconds(self) -> float:
        return sum(segment.samples for segment in self._segments) / self._rate

    @property
    def number(self) -> int:
        """Of the segment that is played, or will be next."""
        return self._segments[0].number if self._segments else self._next

    def push(self, samples: Samples) -> None:
        """Append samples, int16 [n, channels], to the last segment, or begin one."""
        if not len(samples):
            return
        if not self._segments or self._segments[-1].ended:
            self._segments.append(_Segment(self._next))
            self._next += 1
        self._segments[-1].pieces.append(samples)
        self._segments[-1].samples += len(samples)

    def end_segment(self) -> None:
        """End the last segment, if there is one that is open."""
        if self._segments:
            self._segments[-1].ended = True
            self._drop_played()

    def clear(self) -> None:
        """Forget all sound."""
        self._segments.clear()

    def count(self, index: int) -> int:
        """Samples of the session's frame `index`."""
        return (index + 1) * self._rate // FPS - index * self._rate // FPS

    def frames(self, index: int, most: int) -> int:
        """How many frames of one segment, at most `most`, have their sound, from frame `index` of the session on."""
        if not self._segments:
            return 0
        left, ended = self._segments[0].samples, self._segments[0].ended
        for found in range(most):
            count = self.count(index + found)
            if left < count:
                return found + (ended and left > 0)
            left -= count
        return most

    def take(self, count: int) -> tuple[Samples, bool]:
        """The next `count` samples, int16 [count, channels], and whether they end their segment.

        What the segment does not have is silence.
        """
        taken, at = np.zeros((count, self._channels), np.int16), 0
        if not self._segments:
            return taken, False
        segment = self._segments[0]
        while at < count and segment.pieces:
            piece = segment.pieces.popleft()
            part, rest = piece[: count - at], piece[count - at :]
            taken[at : at + len(part)] = part
            at += len(part)
            if len(rest):
                segment.pieces.appendleft(rest)
        segment.samples -= at
        self._drop_played()
        return taken, segment.ended and not segment.samples

    def after(self, index: int, frames: int) -> Iterator[tuple[Samples, bool]]:
        """What is left without the next `frames` frames: for each segment its samples, and whether it is ended."""
        skip = sum(self.count(index + i) for i in range(frames))
        for segment in self._segments:
            if segment.samples > skip:
                yield np.concatenate(segment.pieces)[skip:], segment.ended
            skip = 0

    def _drop_played(self) -> None:
        while self._segments and self._segments[0].ended and not self._segments[0].samples:
            self._segments.popleft()
