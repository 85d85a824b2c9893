"""Chunks of one session: from frames of the reference and a window of sound to composited frames."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..backends.base import Array, ChunkInput, ChunkStream, PendingChunk, Pictures, cores
from ..bundle import Manifest
from ..face import FacePipeline, Overlay
from ..media.av_frame import Plane
from ..media.picture import Picture
from ..media.threads import may_overlap
from .noise import Noise
from .reference import Reference, SourceFrame, stack_crops
from .timeline import Place


class StageTimes:
    """Seconds spent in each stage. Thread-safe: stages may run at the same time, and then each count in full."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `stage`."""
        start = time.perf_counter()
        yield
        with self._lock:
            self._seconds[stage] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        with self._lock:
            return dict(self._seconds)


@dataclass(frozen=True)
class Composited:
    """Frames of a chunk.

    Attributes:
        sources: of the reference. pictures: as they are shown, each done when it is composited. shares: of the
            generated mouth in each, 0 to 1.
        used_chunk: False if no chunk was generated.
    """

    sources: list[SourceFrame]
    pictures: list[Future[Picture]]
    shares: list[float]
    used_chunk: bool


@dataclass(frozen=True)
class _Started:
    """A chunk that is being generated."""

    place: Place
    sources: list[SourceFrame]
    overlays: list[Overlay | None] | None
    pending: PendingChunk


@dataclass(frozen=True)
class _Failed(PendingChunk):
    """A chunk that could not be started ahead of its turn; the error is raised when its turn comes."""

    error: Exception

    def crops(self) -> Pictures:
        raise self.error

    def drop(self) -> None:
        """Nothing is running."""


@cache
def _workers() -> ThreadPoolExecutor:
    """Threads that composite the frames of a chunk side by side, shared by all sessions."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="lipstream-composite")


class ChunkPipeline:
    """Generates chunks, the next one ahead where the stream allows it. Not thread-safe.

    Args:
        sound: called with a place, a frame of its segment and a number of frames n; the samples that the audio encoder
            takes for n frames from that one on, float32 [`AudioGeometry.window(n)`].
        noise: called with the number of a chunk; unit noise [C, c, h, w] for each pass.
        features: called as `sound` without the place; features float32 [n, A] in place of those of a chunk's window.
    """

    def __init__(
        self,
        manifest: Manifest,
        stream: ChunkStream,
        reference: Reference,
        face: FacePipeline,
        sound: Callable[[Place, int, int], Array],
        noise: Noise,
        timed: StageTimes,
        features: Callable[[int, int], Array] | None = None,
    ) -> None:
        self._manifest, self._stream, self._reference, self._face = manifest, stream, reference, face
        self._sound, self._noise, self._timed, self._features = sound, noise, timed, features
        self._ahead: _Started | None = None
        self._compositing: set[Future[Picture]] = set()

    def generate(self, place: Place, following: Callable[[], Place | None], shares: Sequence[float]) -> Composited:
        """The frames of the chunk at `place`; before the first face only the unchanged frames before it, and no chunk.

        Returns when the chunk is generated: its frames are then composited, in order, by other threads.

        Args:
            following: gives the place of the chunk after it, to be started ahead, or None.
            shares: of the generated mouth in each frame, 0 to 1; a frame without a face stays as it is.

        Raises:
            FaceNotFoundError, MediaTruncatedError, OutputError: of the reference. After any error the stream's state
                is that of half a chunk, and cannot be used any more.
        """
        wait([*self._compositing])  # the chunk after this one may be generated into the memory that those crops are in
        started, self._ahead = self._ahead, None
        if started is not None and started.place != place:  # audio or pictures changed since
            started.pending.drop()
            started = None
        sources = started.sources if started else self._source_frames(place)
        if place.number == 0 and sources[0].matrix is None:
            # Every chunk is conditioned on the stream's first latent frame: it must show the face.
            sources = list(itertools.takewhile(lambda source: source.matrix is None, sources))
            return _unchanged(sources)
        started = started or self._start(place, sources)
        # The first chunk's frames must not be delayed, and idle ones may be replaced by speech.
        if self._stream.ahead and place.number and place.segment is not None:
            self._start_ahead(following())
        with self._timed("wait"):
            crops = started.pending.crops() if started.overlays is None else None
            patches = started.pending.patches() if started.overlays is not None else None
        applied = [0.0 if source.matrix is None else share for source, share in zip(sources, shares, strict=True)]
        submit = _workers().submit if may_overlap() else _run
        if crops is not None:
            pictures = [submit(self._composite, *of) for of in zip(sources, crops, applied, strict=True)]
        else:
            parts = zip(sources, started.overlays or (), patches or (), applied, strict=True)
            pictures = [submit(self._patch, *of) for of in parts]
        self._compositing.update(pictures)
        for picture in pictures:
            picture.add_done_callback(self._compositing.discard)
        return Composited(sources, pictures, applied, used_chunk=True)

    def untouched(self, picture: int) -> Composited:
        """One frame of the reference as it is."""
        with self._timed("reference"):
            sources = self._reference.frames(picture, 1)
        return _unchanged(sources)

    def close(self) -> None:
        """Release reference and stream."""
        self._ahead = None
        wait([*self._compositing])
        self._reference.close()
        self._stream.close()

    def _source_frames(self, place: Place) -> list[SourceFrame]:
        with self._timed("reference"):
            return self._reference.frames(place.reference_frame, place.count)

    def _start(self, place: Place, sources: list[SourceFrame]) -> _Started:
        g = self._manifest.geometry
        with self._timed("reference"):
            latents = self._reference.latents(place.reference_frame)
            crops = None if latents is not None else stack_crops(g, [source.crop for source in sources])
        missing = g.video_frames - place.count
        if place.segment is None:
            samples = np.zeros(self._manifest.audio.window(g.video_frames), np.float32)
        else:
            samples = self._sound(place, place.first - missing, g.video_frames)
        features = None
        if self._features and place.segment is not None:
            with self._timed("audio"):
                features = self._features(place.first - missing, g.video_frames)
        overlays = self._overlays(sources)
        noises = self._noise(place.number)
        chunk = ChunkInput(place.number, crops, latents, samples, noises, missing, overlays, features)
        return _Started(place, sources, overlays, self._stream.start(chunk, self._timed))

    def _overlays(self, sources: list[SourceFrame]) -> list[Overlay | None] | None:
        """How each crop goes into its frame, if the stream composites."""
        overlay = self._face.overlay
        if overlay is None or not self._stream.composites:
            return None
        with self._timed("composite"):
            return [None if x.matrix is None else overlay(x.picture, x.crop, x.matrix) for x in sources]

    def _start_ahead(self, place: Place | None) -> None:
        """Start the chunk at `place`: the device works while frames are composited."""
        if place is None:
            return
        try:
            self._ahead = self._start(place, self._source_frames(place))
        except Exception as error:
            self._ahead = _Started(place, [], None, _Failed(error))

    def _composite(self, source: SourceFrame, crop: Pictures, share: float) -> Picture:
        if source.matrix is None or not share:
            return source.picture
        with self._timed("composite"):
            return self._face.composite(source.picture, crop, source.crop, source.matrix, share)

    def _patch(
        self, source: SourceFrame, overlay: Overlay | None, samples: list[Plane] | None, share: float
    ) -> Picture:
        if overlay is None or samples is None or not share:
            return source.picture
        with self._timed("composite"):
            return source.picture.patched(overlay.samples, samples, share)


def _unchanged(sources: list[SourceFrame]) -> Composited:
    pictures = [_run(lambda picture: picture, source.picture) for source in sources]
    return Composited(sources, pictures, [0.0] * len(sources), used_chunk=False)


def _run(function: Callable[..., Picture], *arguments: Any) -> Future[Picture]:
    """Call `function` now, as an executor would later."""
    done = Future[Picture]()
    try:
        done.set_result(function(*arguments))
    except Exception as error:
        done.set_exception(error)
    return done
