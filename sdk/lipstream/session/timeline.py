"""Where a session stands: the segments of pushed audio, and the place of the next chunk in them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..errors import BackpressureError
from ..media import FPS
from .segment import SegmentAudio


@dataclass(frozen=True)
class Place:
    """What a chunk is generated for.

    Attributes:
        number: of the chunk in its stream. segment: whose audio it speaks; None for an idle chunk.
        first: its first frame in the segment. reference_frame: its first frame of the reference. count: its frames.
    """

    number: int
    segment: SegmentAudio | None
    first: int
    reference_frame: int
    count: int


class Timeline:
    """Segments of audio in a row, and how far they are spoken. Not thread-safe: the session's lock protects it.

    Attributes:
        chunk: number of the stream's next chunk.
        reference_frame: the reference's next frame.
        segment: number of the segment that is spoken, or will be next.
        rate: Hz of what was pushed last.

    Args:
        rate: before the first push; None for that of the model.
    """

    def __init__(self, manifest: Manifest, rate: int | None = None, channels: int = 1) -> None:
        self._manifest = manifest
        self._segments: deque[SegmentAudio] = deque()
        self._generated = 0  # frames of the first segment that were generated
        self.rate, self._channels = rate or manifest.audio.sample_rate, channels  # of what was pushed last
        self.chunk = self.reference_frame = self.segment = 0

    @property
    def pending(self) -> float:
        """Seconds of audio that are not generated yet."""
        return (sum(segment.frames for segment in self._segments) - self._generated) / FPS

    def push(self, samples: NDArray[np.float32], rate: int, most: float) -> bool:
        """Append samples, float32 [n, channels], to the last segment, or begin one; returns whether it began one.

        Raises:
            BackpressureError: more than `most` seconds would wait. AudioFormatError: another rate than before.
        """
        fresh = not self._segments or self._segments[-1].ended
        segment = SegmentAudio(self._manifest.audio, rate) if fresh else self._segments[-1]
        seconds = self.pending + len(samples) / segment.rate
        if seconds > most:
            raise BackpressureError(
                f"{seconds:.1f} s of audio would be waiting",
                expected=f"at most {most:g} s",
                fix="take frames from the session between pushes, or open it with a larger max_pending",
            )
        segment.push(samples, rate)
        if fresh:
            self._segments.append(segment)
            self.rate, self._channels = segment.rate, samples.shape[1]
        return fresh

    def end_segment(self) -> None:
        """End the last segment, if there is one."""
        if self._segments:
            self._segments[-1].end()

    def clear(self) -> None:
        """Forget all audio."""
        self.segment += len(self._segments)
        self._segments.clear()
        self._generated = 0

    def drop_generated(self) -> None:
        """Forget segments that are generated to their end."""
        while self._segments and self._segments[0].ended and self._generated >= self._segments[0].frames:
            self._segments.popleft()
            self.segment += 1
            self._generated = 0

    def next(self) -> Place | None:
        """The next chunk's place, if its audio and the look-ahead have been pushed."""
        return self._place(self.chunk, self._generated, self.reference_frame)

    def following(self, place: Place) -> Place | None:
        """The place of the chunk after a spoken one, if its audio has been pushed."""
        assert place.segment is not None
        wanted = min(place.count, place.segment.frames - place.first)
        return self._place(place.number + 1, place.first + wanted, place.reference_frame + wanted)

    def idle(self) -> Place:
        """The place of an idle chunk."""
        return Place(self.chunk, None, 0, self.reference_frame, self._frames_of(self.chunk))

    def advance(self, place: Place, frames: int) -> None:
        """`frames` frames of the chunk at `place` were queued."""
        self.reference_frame += frames
        if place.segment is not None:
            self._generated = place.first + frames
            place.segment.forget(self._generated)

    def silence(self, index: int) -> NDArray[np.float32]:
        """Sound of the idle frame `index` of the session, float32 [n, channels], as was pushed last."""
        return np.zeros(((index + 1) * self.rate // FPS - index * self.rate // FPS, self._channels), np.float32)

    def _place(self, number: int, frame: int, reference_frame: int) -> Place | None:
        for segment in self._segments:
            if segment.ended and frame >= segment.frames:
                frame = 0
                continue
            count = self._frames_of(number)
            return Place(number, segment, frame, reference_frame, count) if segment.ready(frame + count) else None
        return None

    def _frames_of(self, chunk: int) -> int:
        g = self._manifest.geometry
        return g.video_frames if chunk else g.first_frames
