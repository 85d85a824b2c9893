"""A session: audio in, frames out. All state of one stream lives here; the engine behind it is shared."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..backends.base import Array, ChunkInput, ChunkStream, PendingChunk
from ..bundle import Manifest
from ..errors import BackpressureError, ConfigError, ForkError, SessionClosedError
from ..face.compositing import Compositor
from ..face.upstream import OriginalCompositor
from ..media import FPS, to_float
from ..media.audio import check_rate
from ..metrics import Metrics, NoMetrics
from .reference import Reference, SourceFrame, stack_crops
from .segment import SegmentAudio

LOG = logging.getLogger("lipstream")


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of the result. Two frames are equal only if they are the same object.

    Attributes:
        image: uint8 [H, W, 3] RGB, of the reference's size.
        audio: float32 [n, channels], the pushed samples that belong to this frame, at the rate they were pushed with.
        pts: seconds since the session's first frame, index / 25.
        index: 0, 1, 2, ... over the whole session.
        bypassed: True if the frame is the reference's, untouched, for want of a face.
        damaged: True if the reference's file is damaged at this frame.
        segment: number of the segment that the frame belongs to, from 0: `flush` and `interrupt` end one.
        end_of_segment: True for the last frame of a flushed segment.
        speaking: True while there is sound above -45 dB in the frame, and for a third of a second after it.
        idle: True if the frame stands where there was no audio; its sound is silence, its segment the next one.
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


Idle = Literal["closed", "reference"]
"""What a session shows without audio. "closed": the mouth as the model keeps it in silence, at the price of speech.
"reference": the video as it is, at next to no price, faded over to and from speech."""

_GATE = 10 ** (-45 / 20)
_HOLD = 8  # frames after the last sound that still count as speaking
_FADE = 5  # frames in which the generated mouth comes in


@dataclass(frozen=True)
class _Place:
    """Where a chunk stands: its number in the stream, its first frame in a segment, its first picture, and how many.

    Without a segment it is an idle one.
    """

    number: int
    segment: SegmentAudio | None
    first: int
    picture: int
    count: int


class _Silence:
    """Sound of idle frames: silence, at the rate and with the channels that were pushed last."""

    def __init__(self, rate: int) -> None:
        self._rate, self._channels = rate, 1

    def like(self, rate: int, samples: NDArray[np.float32]) -> None:
        self._rate, self._channels = rate, samples.shape[1] if samples.ndim > 1 else 1

    def of_frame(self, index: int) -> NDArray[np.float32]:
        return np.zeros(((index + 1) * self._rate // FPS - index * self._rate // FPS, self._channels), np.float32)


@dataclass(frozen=True)
class _Started:
    """A chunk that is being generated."""

    place: _Place
    sources: list[SourceFrame]
    pending: PendingChunk


@dataclass(frozen=True)
class _Failed:
    """A chunk that could not be started ahead of its turn: what was wrong is said when its turn comes."""

    error: Exception

    def pictures(self) -> Array:
        raise self.error

    def drop(self) -> None:
        """Nothing is under way."""


class LipSyncSession:
    """Made by `LipSyncEngine.session`; use it in a ``with`` block. One stream of frames, which only `close` ends.

    Audio is pushed in pieces of any size. Iterating gives every frame that the audio so far suffices for and then
    ends, so a caller that pushes and iterates in turn never waits; ``frames(wait=True)`` and ``async for`` wait for
    more audio instead, until `close`. A frame depends on sound up to `lookahead` seconds after it, and frames come in
    chunks. Audio is what makes time pass: push silence to keep an idle face moving.

    With `idle` it never ends or waits: where audio is missing, it gives idle frames, and whoever iterates does so at
    the pace of the clock, 25 a second. Idle frames that nobody took give way to speech as soon as there is some.

    A segment is what is spoken between two calls of `flush`. `flush` ends it: its last frame is filled up with silence
    and says `end_of_segment`, so a segment has ceil(seconds * 25) frames. The picture goes on where it was. The next
    push begins the next segment. docs/session.md has the whole life of a session as a table.

    Pushing, flushing, interrupting and closing are safe from other threads than the iterating one.
    """

    def __init__(
        self,
        manifest: Manifest,
        chunks: ChunkStream,
        reference: Reference,
        compositor: Compositor | OriginalCompositor,
        pool: Executor,
        *,
        seed: int = 42,
        max_pending: float = 60.0,
        idle: Idle | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if idle not in (None, *get_args(Idle)):
            raise ConfigError(f"idle={idle!r}", expected=" or ".join(map(repr, get_args(Idle))))
        least = 2 * manifest.geometry.video_frames / FPS  # a chunk and its look-ahead must fit
        if not isinstance(max_pending, int | float) or not max_pending >= least:
            raise ConfigError(f"max_pending={max_pending!r}", expected=f"at least {least:g} seconds, two chunks")
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise ConfigError(f"seed={seed!r}", expected="a whole number from 0 to 2^64 - 1")
        self._manifest, self._chunks, self._reference = manifest, chunks, reference
        self._compositor, self._pool = compositor, pool
        self._seed, self._max_pending = int(seed), max_pending
        self._idle, self._metrics = idle, metrics or NoMetrics()
        self._silence = _Silence(manifest.audio.sample_rate)
        self._hold = 0
        self._share = -1.0  # of the generated mouth in the last frame that was taken; none was
        self._heard_at: float | None = None  # when the sound came whose first frame is awaited
        self._segments: deque[SegmentAudio] = deque()
        self._out: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._wakers: set[Callable[[], None]] = set()
        self._generating = threading.RLock()  # a signal handler may close in the middle
        self._process = os.getpid()
        self._epoch = 0
        self._chunk = self._segment = self._segment_frame = self._index = self._delivered = self._picture = 0
        self._ahead: _Started | None = None
        self._closed = self._released = False
        self._interrupted_at: float | None = None
        self._ended_by = ""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._counting = threading.Lock()

    @property
    def lookahead(self) -> float:
        """Seconds of sound after a frame that it depends on."""
        return self._manifest.audio.lookahead / self._manifest.audio.sample_rate

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent so far, by stage: reference, audio, denoise, decode, composite, context; wait: for pictures.

        Stages that ran at the same time, on threads of their own or on a GPU, each count in full.
        """
        with self._counting:
            return dict(self._seconds)

    def push_audio(self, pcm: ArrayLike, sample_rate: int) -> int:
        """Append audio.

        Args:
            pcm: int16, or float32 in [-1, 1]; [n] or [n, channels], 1 to 8 channels, n >= 0.
            sample_rate: Hz, 4000 to 384000; may change only after `flush`.

        Returns:
            Number of samples taken (all of them).

        Raises:
            AudioFormatError: another type, shape, rate, or NaN; nothing was taken.
            BackpressureError: more than `max_pending` seconds would wait; nothing was taken.
            SessionClosedError: after `close`.
        """
        samples, rate = to_float(pcm), check_rate(sample_rate)
        self._check_process()
        with self._changed:
            self._check_open()
            if not len(samples):
                return 0
            fresh = not self._segments or self._segments[-1].ended
            segment = SegmentAudio(self._manifest.audio, rate) if fresh else self._segments[-1]
            seconds = self._pending() + len(samples) / segment.rate
            if seconds > self._max_pending:
                raise BackpressureError(
                    f"{seconds:.1f} s of audio would be waiting",
                    expected=f"at most {self._max_pending:g} s",
                    fix="take frames from the session between pushes, or open it with a larger max_pending",
                )
            taken = segment.push(samples, rate)
            if fresh:
                self._segments.append(segment)
                self._heard_at = time.perf_counter()
                self._silence.like(segment.rate, samples)
            self._give_way()
            self._notify()
            return taken

    def flush(self) -> None:
        """End the segment: everything pushed so far is spoken out, to the last sample. Nothing pushed, nothing ends."""
        self._check_process()
        with self._changed:
            self._check_open()
            if self._segments:
                self._segments[-1].end()
            self._give_way()
            self._notify()

    def interrupt(self, unshown: int = 0) -> float:
        """Forget all audio and all frames that were not taken yet; what is pushed next is spoken next.

        A chunk that is being generated is finished and thrown away: the next frame comes at most one chunk later than
        from idle. The picture goes on after the last frame that was taken, or shown.

        Args:
            unshown: of the frames that were taken last, how many nobody saw; at most a chunk of 12.

        Returns:
            Seconds of the result that had been taken, and shown.
        """
        self._check_process()
        begun = time.perf_counter()
        with self._changed:
            self._check_open()
            self._epoch += 1
            self._interrupted_at, self._heard_at, self._hold = begun, None, 0
            self._segment += len(self._segments)
            self._segments.clear()
            self._rewind(unshown)
            self._segment_frame = 0
            self._notify()
            self._metrics.count("interrupts")
            return self._delivered / FPS

    @property
    def has_speech(self) -> bool:
        """Whether there is audio enough for the next frames to be spoken ones."""
        with self._changed:
            return self._place(self._chunk, self._segment_frame, self._picture) is not None

    @property
    def can_make(self) -> bool:
        """Whether there is anything to make frames of: audio, or idleness."""
        with self._changed:
            return not self._closed and self._ready()

    def give_way(self, unshown: int) -> None:
        """Take back the last `unshown` frames that were taken, idle ones that nobody saw, so that speech comes at once.

        At most a chunk of 12. For those who take frames before they are due.
        """
        self._check_process()
        with self._changed:
            self._check_open()
            if not self._out or self._out[0].idle:
                self._rewind(unshown)

    def _rewind(self, unshown: int) -> None:
        """Forget the frames that were not taken, and those that nobody saw; under `_changed`."""
        unshown = min(unshown, self._manifest.geometry.video_frames, self._delivered)
        self._picture -= len(self._out) + unshown
        self._out.clear()
        self._delivered -= unshown
        self._index = self._delivered

    def frames(self, *, wait: bool = False) -> Iterator[Frame]:
        """Frames, as far as the audio goes.

        Args:
            wait: at the end of the audio wait for more, until `close`.

        Raises:
            SessionClosedError: the session is closed (when asked for the first frame).
            FaceNotFoundError: policy "raise". MediaTruncatedError, OutputError: the reference ended badly.
        """
        self._check_process()
        with self._changed:
            self._check_open()
        while True:
            with self._changed:
                while wait and not (self._closed or self._out or self._ready()):
                    self._changed.wait()
                frame, ready = self._take(), self._ready()
            if frame is not None:
                yield frame
            elif not ready or not self._work():
                return

    def take(self) -> Frame | None:
        """The next frame that is made already, None if there is none; makes none."""
        self._check_process()
        with self._changed:
            self._check_open()
            return self._take()

    def make(self) -> bool:
        """Make the next frames, if the audio suffices for some and none are waiting; False once the session is closed.

        With `take` what `frames` is made of, for those who make frames on one thread and take them on another. Raises
        as `frames` does.
        """
        self._check_process()
        return self._work()

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """As ``frames(wait=True)``: waits on the event loop, generates in a thread. Cancelling loses no frame."""
        self._check_process()
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._check_open()
            self._wakers.add(wake)
        try:
            while True:
                changed.clear()
                with self._changed:
                    if self._closed:
                        return
                    frame, ready = self._take(), self._ready()
                if frame is not None:
                    yield frame
                elif ready:
                    if not await loop.run_in_executor(self._pool, self._work):
                        return
                else:
                    await changed.wait()
        finally:
            with self._changed:
                self._wakers.discard(wake)

    def close(self) -> None:
        """Release the reference and end all iteration. May be called again.

        Does not wait for a chunk that another thread is generating: that thread releases the reference when it is done.
        """
        self._end()
        if os.getpid() == self._process and self._generating.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._generating.release()

    def __enter__(self) -> LipSyncSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkError.found_in("the session")

    def _check_open(self) -> None:
        if self._closed:
            how = f"was ended by {self._ended_by}" if self._ended_by else "is closed"
            raise SessionClosedError(f"the session {how}", fix="open another one with engine.session(...)")

    def _end(self, by: str = "") -> None:
        with self._changed:
            self._closed, self._ended_by = True, self._ended_by or by
            self._epoch += 1
            self._segments.clear()
            self._out.clear()
            self._notify()

    def _release(self) -> None:
        """Close the reference and the stream, once; under `_generating`."""
        if not self._released:
            self._released = True
            self._ahead = None
            self._metrics.count("sessions_closed")
            LOG.debug(
                "session closed after %d frames%s", self._delivered, f", by {self._ended_by}" * bool(self._ended_by)
            )
            self._reference.close()
            self._chunks.close()

    def _notify(self) -> None:
        """Wake whoever waits for a change; under `_changed`."""
        self._changed.notify_all()
        for wake in self._wakers:
            wake()

    def _pending(self) -> float:
        """Seconds of audio that wait to be generated."""
        return (sum(segment.frames for segment in self._segments) - self._segment_frame) / FPS

    def _take(self) -> Frame | None:
        """The next frame that is there; under `_changed`."""
        if not self._out:
            return None
        self._delivered += 1
        frame = self._out.popleft()
        self._share = frame.generated
        if self._heard_at is not None and not frame.idle:
            self._metrics.observe("first_frame", time.perf_counter() - self._heard_at)
            self._heard_at = None
        return frame

    def _work(self) -> bool:
        """Generate the next chunk, if no other thread has by then; False once the session is closed."""
        with self._generating:
            try:
                self._generate()
            except BaseException as error:
                # Half a chunk is done: the stream's state cannot be used any more.
                self._end(by=type(error).__name__)
                raise
            finally:
                if self._closed:
                    self._release()
        return not self._closed

    def _ready(self) -> bool:
        """Whether the next chunk can be generated; segments that are through are dropped. Under `_changed`."""
        while self._segments and self._segments[0].ended and self._segment_frame >= self._segments[0].frames:
            self._segments.popleft()
            self._segment += 1
            self._segment_frame = 0
        return self._idle is not None or self._place(self._chunk, self._segment_frame, self._picture) is not None

    def _place(self, number: int, frame: int, picture: int) -> _Place | None:
        """Chunk `number`, from `frame` of the first segment on, if its audio is here. Under `_changed`."""
        for segment in self._segments:
            if segment.ended and frame >= segment.frames:
                frame = 0
                continue
            count = self._manifest.geometry.video_frames if number else self._manifest.geometry.first_frames
            return _Place(number, segment, frame, picture, count) if segment.ready(frame + count) else None
        return None

    def _give_way(self) -> None:
        """Forget idle frames that were not taken, once there is audio to speak; under `_changed`."""
        if self._out and self._out[0].idle and self._place(self._chunk, self._segment_frame, self._picture):
            self._rewind(0)

    def _generate(self) -> None:
        """The next chunk, if the audio suffices for it: its frames go to `_out`."""
        begun = time.perf_counter()
        with self._changed:
            if self._closed or self._out or not self._ready():
                return
            if self._interrupted_at is not None:
                self._metrics.observe("interrupt", begun - self._interrupted_at)
                self._interrupted_at = None
            epoch, place = self._epoch, self._place(self._chunk, self._segment_frame, self._picture)
            if place is None:
                count = self._manifest.geometry.video_frames if self._chunk else self._manifest.geometry.first_frames
                place = _Place(self._chunk, None, 0, self._picture, count)
            else:
                self._metrics.observe("queue", self._pending())
        if place.segment is None and self._idle == "reference" and self._share <= 0:
            self._show_reference(epoch, place)
            return
        started, self._ahead = self._ahead, None
        if started is not None and started.place != place:  # audio or pictures changed since
            started.pending.drop()
            started = None
        sources = started.sources if started else self._look(place)
        if place.number == 0 and sources[0].matrix is None:
            # The stream's first frame is its identity for good: wait for one with a face.
            sources = list(itertools.takewhile(lambda source: source.matrix is None, sources))
            images, shares = [source.image.copy() for source in sources], [0.0] * len(sources)
        else:
            started = started or self._start(place, sources)
            self._chunk += 1
            # The first chunk's frames wait for nothing, idle ones may have to give way.
            if self._chunks.ahead and place.number and place.segment is not None:
                self._start_ahead(epoch, place)
            with self._timed("wait"):
                pictures = started.pending.pictures()
            with self._timed("composite"):
                images = [self._show(*pair) for pair in zip(sources, pictures, strict=True)]
                shares = self._fade(place, sources, images)
            self._metrics.count("chunks")
            self._metrics.observe("chunk", time.perf_counter() - begun)
        with self._changed:
            if epoch == self._epoch:
                self._put(place, sources, images, shares)

    def _show_reference(self, epoch: int, place: _Place) -> None:
        """One idle frame, untouched."""
        with self._timed("reference"):
            sources = self._reference.frames(place.picture, 1)
        with self._changed:
            if epoch == self._epoch:
                self._put(place, sources, [sources[0].image.copy()], [0.0])

    def _fade(self, place: _Place, sources: list[SourceFrame], images: list[NDArray[np.uint8]]) -> list[float]:
        """Mix the source into the first frames after untouched ones, and into an idle chunk before them.

        Returns the share of the generated mouth in each frame.
        """
        count = len(images)
        shares = [0.0 if source.matrix is None else 1.0 for source in sources]
        if self._idle != "reference":
            return shares
        if place.segment is None:
            wanted = [1 - (i + 1) / count for i in range(count)]
        else:
            before = 1.0 if self._share < 0 else self._share
            wanted = [min(1.0, before + (i + 1) / (_FADE + 1)) for i in range(count)]
        for i, (share, source) in enumerate(zip(wanted, sources, strict=True)):
            if shares[i] and share < 1:
                images[i] = cv2.addWeighted(images[i], share, source.image, 1 - share, 0)  # type: ignore[assignment]
                shares[i] = share
        return shares

    def _look(self, place: _Place) -> list[SourceFrame]:
        with self._timed("reference"):
            return self._reference.frames(place.picture, place.count)

    def _start(self, place: _Place, sources: list[SourceFrame]) -> _Started:
        g = self._manifest.geometry
        with self._timed("reference"):
            latents = self._reference.latents(place.picture)
            crops = None if latents is not None else stack_crops(g, [source.crop for source in sources])
        missing = g.video_frames - place.count
        if place.segment is None:
            samples = np.zeros(self._manifest.audio.window(g.video_frames), np.float32)
        else:
            with self._changed:
                samples = place.segment.window(place.first - missing, g.video_frames)
        shape = (g.latent_channels, g.chunk_frames, *g.latent_size)
        noises = self._noise(place.number, shape)
        chunk = ChunkInput(place.number, crops, latents, samples, noises, missing)
        return _Started(place, sources, self._chunks.start(chunk, self._timed))

    def _start_ahead(self, epoch: int, place: _Place) -> None:
        """Start the chunk after `place`, if its audio is here: the device goes on while frames are composited."""
        with self._changed:
            if epoch != self._epoch:
                return
            assert place.segment is not None
            wanted = min(place.count, place.segment.frames - place.first)
            following = self._place(place.number + 1, place.first + wanted, place.picture + wanted)
        if following is None:
            return
        try:
            self._ahead = self._start(following, self._look(following))
        except Exception as error:
            self._ahead = _Started(following, [], _Failed(error))

    def _show(self, source: SourceFrame, picture: Array) -> NDArray[np.uint8]:
        if source.matrix is None:
            return source.image.copy()
        return self._compositor.composite(source.image, picture, source.crop, source.matrix)

    def _put(
        self, place: _Place, sources: list[SourceFrame], images: list[NDArray[np.uint8]], shares: list[float]
    ) -> None:
        """Hand out what the segment has sound for, or idle frames unless there is something to say by now.

        Under `_changed`.
        """
        segment, first = place.segment, place.first
        if segment is None:
            if self._place(self._chunk, self._segment_frame, self._picture) is not None:
                return
            wanted, self._hold = len(images), 0
        else:
            wanted = min(len(images), segment.frames - first)
        for i, (source, image) in enumerate(zip(sources[:wanted], images[:wanted], strict=True)):
            audio = self._silence.of_frame(self._index) if segment is None else segment.of_frame(first + i)
            loud = audio.size > 0 and float(np.sqrt(np.mean(np.square(audio)))) > _GATE
            self._hold = _HOLD if loud else max(0, self._hold - 1)
            self._out.append(
                Frame(
                    image=image,
                    audio=audio,
                    pts=self._index / FPS,
                    index=self._index,
                    bypassed=source.matrix is None,
                    damaged=source.damaged,
                    segment=self._segment,
                    end_of_segment=segment is not None and segment.ended and first + i + 1 == segment.frames,
                    speaking=self._hold > 0,
                    idle=segment is None,
                    generated=shares[i],
                )
            )
            self._index += 1
        self._picture += wanted
        if segment is not None:
            self._segment_frame = first + wanted
            segment.forget(self._segment_frame)
        self._metrics.count("frames", wanted)
        self._notify()

    def _noise(self, chunk: int, shape: tuple[int, ...]) -> list[Array]:
        """Unit noise for each pass of a chunk: a function of the seed and the chunk alone."""
        rng = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, chunk]))
        return [rng.standard_normal(shape, np.float32) for _ in self._manifest.t_list[:-1]]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        with self._counting:
            self._seconds[stage] += time.perf_counter() - start
