"""Everything of a session that its lock protects: the timeline, and the frames that are queued to be taken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import SessionClosedError
from ..media import FPS
from ..media.picture import Picture
from ..metrics import Metrics
from .frame import Frame
from .idle import IdlePolicy
from .pipeline import Composited
from .timeline import Place, Timeline

T = TypeVar("T")


class QueuedFrame(NamedTuple):
    """A generated frame. Attributes: frame: with the reference's picture. picture: its own, when it is composited."""

    frame: Frame
    picture: Future[Picture]


class SessionState:
    """Not thread-safe but for `woken`: call everything else while holding `changed`.

    Attributes:
        cut: bytes of a sample whose rest was not pushed yet.
        changed: the lock, notified of every change.
        queue: frames that were generated, and not taken; the first ones may still be composited.
        taken: number of frames taken, less those that `interrupt` gave back.
        epoch: counts interrupts; what was begun before one is discarded.
        closed: no more frames.
        ended_by: the error that closed the session, if one did.
    """

    def __init__(self, timeline: Timeline, idle: IdlePolicy, metrics: Metrics) -> None:
        self.changed = threading.Condition()
        self.cut = b""
        self.timeline, self._idle, self._metrics = timeline, idle, metrics
        self.queue: deque[QueuedFrame] = deque()
        self.taken = self.epoch = 0
        self.closed = False
        self.ended_by = ""
        self._taken_share = -1.0
        self._first_sound_at: float | None = None  # of a segment whose first frame was not taken yet
        self._interrupted_at: float | None = None
        self._wakers: set[Callable[[], object]] = set()

    @property
    def share(self) -> float:
        """Share of the generated mouth in the last frame, queued or taken; negative before a session's first."""
        return self.queue[-1].frame.generated if self.queue else self._taken_share

    @contextmanager
    def woken(self, wake: Callable[[], object]) -> Iterator[None]:
        """Call `wake` after every change that happens inside."""
        with self.changed:
            self._wakers.add(wake)
        try:
            yield
        finally:
            with self.changed:
                self._wakers.discard(wake)

    async def when(self, condition: Callable[[], T | None]) -> T:
        """The value of `condition`, called with the lock held, once it is not None. Occupies no thread."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        with self.woken(lambda: loop.is_closed() or loop.call_soon_threadsafe(changed.set)):
            while True:
                changed.clear()
                with self.changed:
                    if (value := condition()) is not None:
                        return value
                await changed.wait()

    @property
    def compositing(self) -> bool:
        """Whether the next frame is generated, and not yet composited."""
        return bool(self.queue) and not self.queue[0].picture.done()

    def notify(self) -> None:
        """Wake every thread and task that waits for a change."""
        self.changed.notify_all()
        for wake in self._wakers:
            wake()

    def check_open(self) -> None:
        """Raise SessionClosedError if it is closed."""
        if self.closed:
            how = f"was ended by {self.ended_by}" if self.ended_by else "is closed"
            raise SessionClosedError(f"the session {how}", fix="open another one with engine.session(...)")

    def push(self, samples: NDArray[np.float32], rate: int, most: float) -> None:
        """Append audio: see `Timeline.push`."""
        if self.timeline.push(samples, rate, most):
            self._first_sound_at = time.perf_counter()
        self._replace_idle()
        self.notify()

    def flush(self) -> None:
        """End the segment."""
        self.cut = b""
        self.timeline.end_segment()
        self._replace_idle()
        self.notify()

    def interrupt(self, unshown: int) -> None:
        """Discard all audio, the queue, and the `unshown` frames that were taken last."""
        self.epoch += 1
        self.cut = b""
        self._interrupted_at, self._first_sound_at = time.perf_counter(), None
        self._idle.reset()
        self.timeline.clear()
        self.timeline.reference_frame -= len(self.queue) + unshown
        self._discard(len(self.queue))
        self.taken -= unshown
        self.notify()

    def end(self, by: str = "") -> None:
        """Close the session; `by` names the error that ends it."""
        self.closed, self.ended_by = True, self.ended_by or by
        self.epoch += 1
        self.timeline.clear()
        self._discard(len(self.queue))
        self.notify()

    def take(self) -> Frame | None:
        """The next frame of the queue; None if it is empty, or its first frame is still composited.

        Raises what compositing it raised; that ends the session.
        """
        if not self.queue or self.compositing:
            return None
        frame, picture = self.queue.popleft()
        try:
            frame = replace(frame, picture=picture.result())
        except BaseException as error:
            self.end(by=type(error).__name__)
            raise
        self.taken += 1
        self._taken_share = frame.generated
        if self._first_sound_at is not None and not frame.idle:
            self._metrics.observe("first_frame", time.perf_counter() - self._first_sound_at)
            self._first_sound_at = None
        self.changed.notify_all()  # a thread that generates ahead may continue
        return frame

    def ready(self) -> bool:
        """Whether another chunk can be generated: there is audio for one, or the session is idle.

        Forgets segments that are generated to their end; to be called before `next_place`.
        """
        self.timeline.drop_generated()
        return not self.closed and (self._idle.mode is not None or self.timeline.next() is not None)

    def next_place(self) -> Place:
        """The place of the chunk that is generated next; see `ready`."""
        if self._interrupted_at is not None:
            self._metrics.observe("interrupt", time.perf_counter() - self._interrupted_at)
            self._interrupted_at = None
        place = self.timeline.next()
        if place is None:
            return self.timeline.idle()
        self._metrics.observe("queue", self.timeline.pending)
        return place

    def put(self, place: Place, made: Composited) -> None:
        """Queue the frames for which the segment has sound; or idle ones, unless there is speech by now."""
        segment, timeline = place.segment, self.timeline
        wanted = len(made.pictures) if segment is None else min(len(made.pictures), segment.frames - place.first)
        if segment is None:
            if timeline.next() is not None:
                return
            self._idle.reset()
        for i in range(wanted):
            index = self.taken + len(self.queue)
            if segment is None:
                audio, rate = timeline.silence(index), timeline.rate
            else:
                audio, rate = segment.of_frame(place.first + i), segment.rate
            frame = Frame(
                picture=made.sources[i].picture,
                audio=audio,
                sample_rate=rate,
                pts=index / FPS,
                index=index,
                bypassed=made.sources[i].matrix is None,
                held=made.sources[i].held,
                doubt=made.sources[i].doubt,
                damaged=made.sources[i].damaged,
                segment=timeline.segment,
                end_of_segment=segment is not None and segment.ended and place.first + i + 1 == segment.frames,
                speaking=self._idle.speaking(audio),
                idle=segment is None,
                generated=made.shares[i],
            )
            self.queue.append(QueuedFrame(frame, made.pictures[i]))
        timeline.advance(place, wanted)
        self._metrics.count("frames", wanted)
        self.notify()
        for picture in made.pictures[:wanted]:
            picture.add_done_callback(self._composited)
        for picture in made.pictures[wanted:]:
            picture.cancel()

    def _composited(self, picture: Future[Picture]) -> None:
        with self.changed:
            self.notify()

    def _discard(self, count: int) -> None:
        """Drop the last `count` frames of the queue."""
        for _ in range(count):
            self.queue.pop().picture.cancel()

    def _replace_idle(self) -> None:
        """Drop idle frames from the end of the queue once there is audio to speak."""
        if self.queue and self.queue[-1].frame.idle and self.timeline.next() is not None:
            while self.queue and self.queue[-1].frame.idle:
                self._discard(1)
                self.timeline.reference_frame -= 1
