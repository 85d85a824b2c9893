"""A session: audio in, frames out. The stream's state is in `state`, its chunks come from `pipeline`."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from types import TracebackType

from numpy.typing import ArrayLike

from ..backends import ChunkStream
from ..backends.base import Array
from ..bundle import Manifest
from ..checks import check_count, check_number
from ..errors import AudioFormatError, ConfigError, ForkError
from ..face import FacePipeline
from ..media import FPS, to_float
from ..media.audio import check_channels, check_rate, is_bytes, split_pcm
from ..metrics import Metrics, NoMetrics
from ..shutdown import close_at_exit, working
from .frame import Frame
from .idle import Idle, IdlePolicy
from .in_progress import in_progress
from .noise import Noise, noise_of
from .pipeline import ChunkPipeline, StageTimes
from .reference import Reference
from .state import SessionState
from .timeline import Place, Timeline

LOG = logging.getLogger("lipstream")


class LipSyncSession:
    """Made by `LipSyncEngine.session`; use it in a ``with`` block. One stream of frames, which only `close` ends.

    Audio is pushed in pieces of any size. Iterating, with ``for`` or ``async for``, yields every frame that the audio
    pushed so far allows, and then ends; it never waits for audio. `wait` and `wait_async` do, for a consumer beside the
    producer. A frame depends on sound up to `lookahead` seconds after it, and frames come in chunks.

    With `idle` there is always a next frame: where audio is missing, iterating yields idle frames, so the caller paces
    it, 25 frames a second (`RealtimePlayer` does). Idle frames that were not taken are replaced as soon as there is
    speech.

    A segment is what is spoken between two calls of `flush`. `flush` ends it: its last frame is filled up with silence
    and has `end_of_segment`, so a segment has ceil(seconds * 25) frames. The picture continues without a jump, and the
    next push begins the next segment. docs/session.md describes every state.

    All methods may be called from any thread.
    """

    def __init__(
        self,
        manifest: Manifest,
        stream: ChunkStream,
        reference: Reference,
        face: FacePipeline,
        pool: Executor,
        *,
        noise: Noise | None = None,
        max_pending: float = 60.0,
        idle: Idle | None = None,
        sample_rate: int | None = None,
        channels: int = 1,
        metrics: Metrics | None = None,
        features: Callable[[int, int], Array] | None = None,
    ) -> None:
        self._idle = IdlePolicy(idle)
        self._video_frames = manifest.geometry.video_frames
        least = 2 * self._video_frames / FPS  # a chunk and its look-ahead must fit
        if not isinstance(max_pending, int | float) or not max_pending >= least:
            raise ConfigError(f"max_pending={max_pending!r}", expected=f"at least {least:g} seconds, two chunks")
        self._rate = None if sample_rate is None else check_rate(sample_rate)
        self._channels = check_channels(channels)
        self._lookahead = manifest.audio.lookahead / manifest.audio.sample_rate
        self._pool, self._max_pending, self._metrics = pool, max_pending, metrics or NoMetrics()
        self._times = StageTimes()
        self._state = state = SessionState(Timeline(manifest, self._rate, channels), self._idle, self._metrics)

        def sound(place: Place, first: int, frames: int) -> Array:
            assert place.segment is not None
            with state.changed:
                return place.segment.window(first, frames)

        noises = noise or noise_of(None, manifest, 42, None)
        self._pipeline = ChunkPipeline(manifest, stream, reference, face, sound, noises, self._times, features)
        self._generating = threading.RLock()  # reentrant: a signal handler may close in the middle of a chunk
        self._released = False
        self._process = os.getpid()
        close_at_exit(self)

    def __repr__(self) -> str:
        state = self._state
        how = "closed" if state.closed else f"{state.timeline.pending:.2f} s of audio pending"
        return f"<LipSyncSession: {state.taken} frames taken, {len(state.queue)} ready, {how}>"

    @property
    def lookahead(self) -> float:
        """Seconds of sound after a frame that it depends on."""
        return self._lookahead

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent so far, by stage: reference, audio, denoise, decode, composite, context; wait: for pictures.

        Stages that ran at the same time, on several threads or on a GPU, each count in full.
        """
        return self._times.read()

    def push_audio(self, pcm: ArrayLike, sample_rate: int | None = None, *, channels: int | None = None) -> int:
        """Append audio.

        Args:
            pcm: int16, or float32 in [-1, 1]; [n] or [n, channels], 1 to 8 channels, n >= 0. Or bytes, a piece of a
                stream of int16 little endian, interleaved: a sample that is cut continues with the next bytes; its
                first part is dropped by `flush`, `interrupt`, and an array.
            sample_rate: Hz, 4000 to 384000; None for the session's. Rate and channels may change only after `flush`.
            channels: of bytes, 1 to 8; None for the session's.

        Returns:
            Number of samples taken, per channel: all of them, but for one that is cut.

        Raises:
            AudioFormatError: another type, shape, rate, or NaN, or no rate is known; nothing was taken.
            BackpressureError: more than `max_pending` seconds would wait; nothing was taken.
            SessionClosedError: after `close`.
        """
        if sample_rate is None and self._rate is None:
            raise AudioFormatError(
                "audio without a sample rate",
                expected="its rate in Hz",
                fix="push_audio(pcm, 24000), or engine.session(..., sample_rate=24000)",
            )
        rate = check_rate(self._rate if sample_rate is None else sample_rate)
        width = self._channels if channels is None else check_channels(channels)
        with self._locked() as state:
            array, cut = split_pcm(state.cut + bytes(pcm), width) if is_bytes(pcm) else (pcm, b"")
            samples = to_float(array)
            if len(samples):
                state.push(samples, rate, self._max_pending)
            state.cut = cut
        return len(samples)

    def flush(self) -> None:
        """End the segment: everything pushed so far is spoken, to the last sample. Without audio it does nothing."""
        with self._locked() as state:
            state.flush()

    def interrupt(self, unshown: int = 0) -> float:
        """Discard all audio and all frames that were not taken yet; what is pushed next is spoken next.

        A chunk that is being generated is finished and discarded: the next frame comes at most one chunk later than
        from idle. The picture continues after the last frame that was taken, and shown.

        Args:
            unshown: how many of the frames taken last were not shown; more than a chunk of 12 count as 12.

        Returns:
            Seconds of the result that had been taken, and shown.

        Raises:
            ConfigError: `unshown` is no whole number, or negative. SessionClosedError: after `close`.
        """
        check_count("unshown", unshown, least=0, expected="a number of frames, 0 or more")
        with self._locked() as state:
            state.interrupt(min(int(unshown), self._video_frames, state.taken))
            self._metrics.count("interrupts")
            return state.taken / FPS

    def __iter__(self) -> Iterator[Frame]:
        """Every frame that the audio pushed so far allows.

        Raises:
            SessionClosedError: the session is closed (when asked for the first frame).
            FaceNotFoundError: policy "raise". MediaTruncatedError, OutputError: of the reference.
        """
        self._check_open()
        while True:
            with self._state.changed:
                self._state.changed.wait_for(lambda: not self._state.compositing)
                frame, ready = self._take()
            if frame is not None:
                yield frame
            elif not ready or not self._generate():
                return

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """As ``for``; generates in a thread of the engine's pool. Cancelling it loses no frame."""
        self._check_open()
        while True:
            frame, ready = await self._state.when(lambda: None if self._state.compositing else self._take())
            if frame is not None:
                yield frame
            elif not ready or not await asyncio.get_running_loop().run_in_executor(self._pool, self._generate):
                return

    def wait(self, timeout: float | None = None) -> bool:
        """Block until iterating yields a frame; False once the session is closed, or after `timeout` seconds.

        Raises:
            ConfigError: `timeout` is neither None nor seconds.
        """
        self._check_process()
        if timeout is not None:
            check_number("timeout", timeout, above=-math.inf, expected="seconds, or None to wait without end")
        state = self._state
        with state.changed:
            state.changed.wait_for(lambda: state.closed or state.queue or state.ready(), timeout)
            return bool(state.queue) or state.ready()

    async def wait_async(self) -> bool:
        """Wait until iterating yields a frame; False once the session is closed. Occupies no thread."""
        self._check_process()
        state = self._state
        await state.when(lambda: state.closed or state.queue or state.ready() or None)
        return not state.closed

    def close(self) -> None:
        """Release the reference and end all iteration. May be called again.

        Does not wait for a chunk that another thread is generating: that thread releases the reference when it is done.
        """
        with self._state.changed:
            self._state.end()
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

    async def __aenter__(self) -> LipSyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkError.found_in("the session")

    def _check_open(self) -> None:
        with self._locked():
            pass

    def _take(self) -> tuple[Frame | None, bool]:
        """The next frame that is queued, and whether another chunk can be generated; with the lock held."""
        return self._state.take(), self._state.ready()

    @contextmanager
    def _locked(self) -> Iterator[SessionState]:
        """The state of an open session, with the lock held; raises ForkError and SessionClosedError."""
        self._check_process()
        with self._state.changed:
            self._state.check_open()
            yield self._state

    @working()
    def _generate(self, ahead: int = 1) -> bool:
        """Generate the next chunk unless `ahead` frames are queued; False once the session is closed."""
        state = self._state
        with self._generating:
            try:
                with state.changed:
                    work = len(state.queue) < ahead and state.ready()
                if work:
                    with in_progress():
                        self._generate_chunk()
            except BaseException as error:
                with state.changed:  # half a chunk is done: the stream cannot be used any more
                    state.end(by=type(error).__name__)
                raise
            finally:
                if state.closed:
                    self._release()
        return not state.closed

    def _generate_chunk(self) -> None:
        begun, state = time.perf_counter(), self._state
        with state.changed:
            epoch, place, share = state.epoch, state.next_place(), state.share

        def following() -> Place | None:
            with state.changed:
                return state.timeline.following(place) if epoch == state.epoch else None

        if place.segment is None and self._idle.is_reference(share):
            made = self._pipeline.untouched(place.reference_frame)
        else:
            shares = self._idle.shares(place.segment is not None, share, place.count)
            made = self._pipeline.generate(place, following, shares)
            if made.used_chunk:
                self._metrics.count("chunks")
                self._metrics.observe("chunk", time.perf_counter() - begun)
        with state.changed:
            state.timeline.chunk += made.used_chunk
            if epoch == state.epoch:
                state.put(place, made)

    def _release(self) -> None:
        """Close the reference and the stream, once; under `_generating`."""
        if not self._released:
            self._released = True
            self._metrics.count("sessions_closed")
            by = f", by {self._state.ended_by}" if self._state.ended_by else ""
            LOG.debug("session closed after %d frames%s", self._state.taken, by)
            self._pipeline.close()
