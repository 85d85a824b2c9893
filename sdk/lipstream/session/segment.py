"""The sound of one segment: as pushed, at the model's rate, and the video frames that it allows.

Everything is counted in samples, never in wall-clock time, so picture and sound cannot drift apart.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from ..bundle import AudioGeometry
from ..errors import AudioFormatError
from ..media import FPS, StreamResampler
from ..media.audio import check_rate

Samples = NDArray[np.float32]


class SegmentAudio:
    """Audio of one segment of a session, pushed in any pieces.

    Frame f of the segment covers the pushed samples ``[f * rate // 25, (f + 1) * rate // 25)``. Samples before
    the frames not yet generated are dropped.

    Attributes:
        rate: of the pushed audio, Hz. ended: no more audio will follow.
    """

    def __init__(self, geometry: AudioGeometry, rate: int) -> None:
        self._geometry = geometry
        self.rate = check_rate(rate)
        self.ended = False
        self._resampler = StreamResampler(self.rate, geometry.sample_rate)
        self._pushed = _SampleQueue()
        self._resampled = _SampleQueue()

    def push(self, samples: Samples, rate: int) -> None:
        """Append samples, float32 [n, channels]; AudioFormatError for another rate or channel count than before."""
        if rate != self.rate:
            raise AudioFormatError(
                f"audio at {rate} Hz",
                expected=f"{self.rate} Hz, as pushed before",
                fix="flush() before changing the rate",
            )
        resampled = self._resampler.push(samples)
        self._pushed.append(samples)
        self._resampled.append(resampled)

    def end(self) -> None:
        if not self.ended:
            self._resampled.append(self._resampler.flush())
            self.ended = True

    @property
    def frames(self) -> int:
        """Number of video frames in the audio pushed so far: the complete ones and, once ended, a last incomplete one.

        The last one is filled up with silence, so that no sample is lost.
        """
        beyond = self.rate - 1 if self.ended else 0
        return (self._pushed.end * FPS + beyond) // self.rate

    def ready(self, frames: int) -> bool:
        """Whether the segment's first `frames` frames can be generated: their sound and its look-ahead were pushed."""
        return self.ended or self._resampled.end >= frames * self._geometry.samples_per_frame + self._geometry.lookahead

    def window(self, first: int, frames: int) -> Samples:
        """Input of the audio encoder for `frames` frames from `first` on (may be negative), context included.

        Float32 [lookback + frames * samples_per_frame + lookahead]; silence where there is no sound.
        """
        g = self._geometry
        start = first * g.samples_per_frame - g.lookback
        return self._resampled.read(start, (first + frames) * g.samples_per_frame + g.lookahead)[:, 0]

    def of_frame(self, frame: int) -> Samples:
        """The pushed samples [n, channels] that belong to one video frame."""
        return self._pushed.read(frame * self.rate // FPS, (frame + 1) * self.rate // FPS)

    def forget(self, frame: int) -> None:
        """Drop samples that only frames before `frame` need."""
        g = self._geometry
        self._pushed.forget(frame * self.rate // FPS)
        self._resampled.forget(frame * g.samples_per_frame - g.lookback)


class _SampleQueue:
    """Samples by absolute position, in pieces, of which the oldest can be dropped. Outside there is silence."""

    def __init__(self) -> None:
        self._pieces: deque[Samples] = deque()
        self._start = self.end = 0

    def append(self, samples: Samples) -> None:
        if len(samples):
            # A copy: the caller's array may be reused.
            self._pieces.append(np.array(samples.reshape(len(samples), -1)))
            self.end += len(samples)

    def read(self, start: int, end: int) -> Samples:
        channels = self._pieces[0].shape[1] if self._pieces else 1
        out = np.zeros((end - start, channels), np.float32)
        position = self._start
        for piece in self._pieces:
            if position >= end:
                break
            first, last = max(start, position), min(end, position + len(piece))
            if first < last:
                out[first - start : last - start] = piece[first - position : last - position]
            position += len(piece)
        return out

    def forget(self, before: int) -> None:
        while self._pieces and self._start + len(self._pieces[0]) <= before:
            self._start += len(self._pieces.popleft())
