"""A session: audio in, frames out. All state of one stream lives here; the engine behind it is shared."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .audio import SegmentAudio
from .backends.base import Array, Stream
from .bundle import Manifest
from .composite import Compositor
from .denoise import assemble_condition, generate_chunk
from .errors import BackpressureError, ConfigError, SessionClosedError
from .media import to_float
from .media.audio import check_rate
from .reference import Reference


@dataclass(frozen=True)
class Frame:
    """One frame of the result.

    Attributes:
        image: uint8 [H, W, 3] RGB, of the reference's size.
        audio: float32 [n, channels], the pushed samples that belong to this frame, at the rate they were pushed with.
        pts: seconds since the session's first frame, index / 25.
        index: 0, 1, 2, ... over the whole session.
        bypassed: True if the frame is the reference's, untouched, for want of a face.
    """

    image: NDArray[np.uint8]
    audio: NDArray[np.float32]
    pts: float
    index: int
    bypassed: bool


class LipSyncSession:
    """Made by `LipSyncEngine.session`; use it in a ``with`` block.

    Audio is pushed in pieces of any size. Iterating gives every frame that the audio so far suffices for and then
    ends, so a caller that pushes and iterates in turn never waits; ``frames(wait=True)`` and ``async for`` wait for
    more audio instead, until `flush`. A frame depends on sound up to `lookahead` seconds after it, and frames come in
    chunks of 12 (the session's first: 9). Audio is what makes time pass: push silence to keep an idle face moving.

    `flush` ends a segment: its last chunk is filled up with silence and its output cut to floor(seconds * 25) frames.
    The next push begins another segment of the same stream.

    Pushing, flushing, interrupting and closing are safe from other threads than the iterating one.
    """

    def __init__(
        self,
        manifest: Manifest,
        stream: Stream,
        reference: Reference,
        compositor: Compositor,
        latent_mask: Array,
        *,
        seed: int = 42,
        max_pending: float = 60.0,
    ) -> None:
        least = 2 * manifest.geometry.video_frames / manifest.geometry.fps  # a chunk and its look-ahead must fit
        if not max_pending >= least:
            raise ConfigError(f"max_pending={max_pending}", expected=f"at least {least:g} seconds, two chunks")
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed={seed}", expected="a whole number from 0 to 2^64 - 1")
        self._manifest, self._stream, self._reference = manifest, stream, reference
        self._compositor, self._latent_mask = compositor, latent_mask
        self._seed, self._max_pending = seed, max_pending
        self._segments: deque[SegmentAudio] = deque()
        self._out: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._generating = threading.RLock()  # a signal handler may close in the middle
        self._epoch = 0
        self._chunk = self._segment_frame = self._index = self._delivered = 0
        self._first_latent: Array | None = None
        self._unfinished: tuple[Array, Array, Array] | None = None
        self._ending = self._closed = False
        self._ended_by = ""
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def lookahead(self) -> float:
        """Seconds of sound after a frame that it depends on."""
        return self._manifest.audio.lookahead / self._manifest.audio.sample_rate

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent so far, by stage: reference, audio, denoise, decode, composite, context."""
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
        g = self._manifest.geometry
        with self._changed:
            self._check_open()
            if not len(samples):
                return 0
            fresh = not self._segments or self._segments[-1].ended
            segment = SegmentAudio(self._manifest.audio, g.fps, rate) if fresh else self._segments[-1]
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
            self._ending = False
            self._changed.notify_all()
            return taken

    def flush(self) -> None:
        """End the segment: everything pushed so far is spoken out, the last chunk filled up with silence and cut."""
        with self._changed:
            self._check_open()
            if self._segments:
                self._segments[-1].end()
            self._ending = True
            self._changed.notify_all()

    def interrupt(self) -> float:
        """Forget all audio and all frames that were not taken yet; what is pushed next is spoken next.

        A chunk that is being generated is finished and thrown away: the next frame comes at most one chunk later than
        from idle. The picture may jump by the frames thrown away, at most 12.

        Returns:
            Seconds of the result that had been taken.
        """
        with self._changed:
            self._check_open()
            self._epoch += 1
            self._segments.clear()
            self._out.clear()
            self._segment_frame = 0
            self._index = self._delivered
            self._changed.notify_all()
            return self._delivered / self._manifest.geometry.fps

    def frames(self, *, wait: bool = False) -> Iterator[Frame]:
        """Frames, as far as the audio goes.

        Args:
            wait: at the end of the audio wait for more; ends when a flushed segment has been delivered, or on `close`.

        Raises:
            SessionClosedError: the session is closed (when asked for the first frame).
            FaceNotFoundError: policy "raise". MediaTruncatedError, OutputError: the reference ended badly.
        """
        with self._changed:
            self._check_open()
        while self._available(wait):
            if (frame := self._take()) is not None:
                yield frame

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """As ``frames(wait=True)``, waiting and generating in a thread. Cancelling loses no frame."""
        with self._changed:
            self._check_open()
        left = threading.Event()
        try:
            while await asyncio.to_thread(self._available, True, left):
                if (frame := self._take()) is not None:
                    yield frame
        finally:
            # The thread outlives a cancelled await: it must not go on waiting.
            left.set()
            with self._changed:
                self._changed.notify_all()

    def close(self) -> None:
        """Release the reference and end all iteration. May be called again."""
        self._end()
        with self._generating:
            self._reference.close()

    def __enter__(self) -> LipSyncSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
            self._changed.notify_all()

    def _pending(self) -> float:
        """Seconds of audio that wait to be generated."""
        frames = sum(segment.frames for segment in self._segments) - self._segment_frame
        return frames / self._manifest.geometry.fps

    def _available(self, wait: bool, left: threading.Event | None = None) -> bool:
        """Wait and generate until there is a frame to take; False at the end of the audio, or once `left` is set."""
        while True:
            with self._changed:
                while not (self._closed or self._out or self._ready()):
                    if not wait or (left and left.is_set()) or (self._ending and not self._segments):
                        return False
                    self._changed.wait()
                if self._closed or self._out:
                    return not self._closed
            with self._generating:
                try:
                    self._generate()
                except BaseException as error:
                    # Half a chunk is done: the stream's state is of no use to anybody any more.
                    self._end(by=type(error).__name__)
                    raise

    def _take(self) -> Frame | None:
        """The next frame; None where an interruption or `close` was faster."""
        with self._changed:
            if not self._out:
                return None
            self._delivered += 1
            return self._out.popleft()

    def _ready(self) -> bool:
        """Whether the next chunk can be generated; segments that are through are dropped."""
        while self._segments and self._segments[0].ended and self._segment_frame >= self._segments[0].frames:
            self._segments.popleft()
            self._segment_frame = 0
        return bool(self._segments) and self._segments[0].ready(self._segment_frame + self._chunk_length())

    def _chunk_length(self) -> int:
        """Video frames of the next chunk."""
        g = self._manifest.geometry
        return g.video_frames - (0 if self._chunk else g.temporal - 1)

    def _generate(self) -> None:
        """One chunk: reference, sound, denoising, decoding, compositing; its context pass waits for the next one."""
        g, stream = self._manifest.geometry, self._stream
        with self._changed:
            if self._closed or self._out or not self._ready():
                return
            epoch, segment, first = self._epoch, self._segments[0], self._segment_frame
            count = self._chunk_length()
            missing = g.video_frames - count
            wanted = min(count, segment.frames - first)
            heard = segment.window(first - missing, g.video_frames)
        if self._unfinished is not None:
            with self._timed("context"):
                stream.context(*self._unfinished)
                self._unfinished = None
        with self._timed("reference"):
            reference = self._reference.chunk(stream, count)
        with self._timed("audio"):
            features = stream.encode_audio(heard)
            features[:missing] = features[missing]  # the stream's first frame stands for four
        with self._timed("denoise"):
            sequence, masked = reference.latents
            if self._first_latent is None:
                self._first_latent = sequence[:, :1].copy()
            condition = assemble_condition(self._first_latent, self._latent_mask, masked, sequence)
            stream.begin_chunk(self._chunk)
            noises = self._noise(masked.shape)
            latent = generate_chunk(stream, self._manifest.t_list, noises, condition, features)
        with self._timed("decode"):
            pictures = stream.decode(latent)[missing:].transpose(0, 2, 3, 1)
        self._unfinished = latent, condition, features
        self._chunk += 1
        with self._timed("composite"):
            images = [
                source.image.copy()
                if source.matrix is None
                else self._compositor.composite(source.image, picture, source.crop, source.matrix)
                for source, picture in zip(reference.frames[:wanted], pictures, strict=False)
            ]
        with self._changed:
            if epoch != self._epoch:
                return
            for i, (source, image) in enumerate(zip(reference.frames[:wanted], images, strict=True)):
                sound = segment.of_frame(first + i)
                self._out.append(Frame(image, sound, self._index / g.fps, self._index, source.matrix is None))
                self._index += 1
            self._segment_frame = first + wanted
            segment.forget(self._segment_frame)

    def _noise(self, shape: tuple[int, ...]) -> list[Array]:
        """Unit noise for each pass of the current chunk: a function of the seed and the chunk alone."""
        rng = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, self._chunk]))
        return [rng.standard_normal(shape, np.float32) for _ in self._manifest.t_list[:-1]]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - start
