"""Chunks of one session: from frames of the reference and a window of sound to composited frames."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, ChunkInput, ChunkStream, PendingChunk
from ..bundle import Manifest
from ..face import FacePipeline
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
    """Frames of a chunk. Attributes: images: uint8 [H, W, 3] each. used_chunk: False if no chunk was generated."""

    sources: list[SourceFrame]
    images: list[NDArray[np.uint8]]
    used_chunk: bool


@dataclass(frozen=True)
class _Started:
    """A chunk that is being generated."""

    place: Place
    sources: list[SourceFrame]
    pending: PendingChunk


@dataclass(frozen=True)
class _Failed:
    """A chunk that could not be started ahead of its turn; the error is raised when its turn comes."""

    error: Exception

    def pictures(self) -> Array:
        raise self.error

    def drop(self) -> None:
        """Nothing is running."""


class ChunkPipeline:
    """Generates chunks, the next one ahead where the stream allows it. Not thread-safe.

    Args:
        sound: gives the audio encoder's window [window(n)] of n frames that start at a frame of a place's segment.
        seed: of the noise, 0 to 2^64 - 1.
    """

    def __init__(
        self,
        manifest: Manifest,
        stream: ChunkStream,
        reference: Reference,
        face: FacePipeline,
        sound: Callable[[Place, int, int], Array],
        seed: int,
        timed: StageTimes,
    ) -> None:
        self._manifest, self._stream, self._reference, self._face = manifest, stream, reference, face
        self._sound, self._seed, self._timed = sound, seed, timed
        self._ahead: _Started | None = None

    def generate(self, place: Place, following: Callable[[], Place | None]) -> Composited:
        """The frames of the chunk at `place`.

        Args:
            following: gives the place of the chunk after it, to be started ahead, or None.

        Raises:
            FaceNotFoundError, MediaTruncatedError, OutputError: of the reference. After any error the stream's state
                is that of half a chunk, and cannot be used any more.
        """
        started, self._ahead = self._ahead, None
        if started is not None and started.place != place:  # audio or pictures changed since
            started.pending.drop()
            started = None
        sources = started.sources if started else self._look(place)
        if place.number == 0 and sources[0].matrix is None:
            # The stream's first frame fixes its identity: wait for one with a face.
            sources = list(itertools.takewhile(lambda source: source.matrix is None, sources))
            return Composited(sources, [source.image.copy() for source in sources], used_chunk=False)
        started = started or self._start(place, sources)
        # The first chunk's frames must not be delayed, and idle ones may be replaced by speech.
        if self._stream.ahead and place.number and place.segment is not None:
            self._start_ahead(following())
        with self._timed("wait"):
            pictures = started.pending.pictures()
        with self._timed("composite"):
            images = [self._composite(*pair) for pair in zip(sources, pictures, strict=True)]
        return Composited(sources, images, used_chunk=True)

    def untouched(self, picture: int) -> Composited:
        """One frame of the reference as it is."""
        with self._timed("reference"):
            sources = self._reference.frames(picture, 1)
        return Composited(sources, [sources[0].image.copy()], used_chunk=False)

    def close(self) -> None:
        """Release reference and stream."""
        self._ahead = None
        self._reference.close()
        self._stream.close()

    def _look(self, place: Place) -> list[SourceFrame]:
        with self._timed("reference"):
            return self._reference.frames(place.picture, place.count)

    def _start(self, place: Place, sources: list[SourceFrame]) -> _Started:
        g = self._manifest.geometry
        with self._timed("reference"):
            latents = self._reference.latents(place.picture)
            crops = None if latents is not None else stack_crops(g, [source.crop for source in sources])
        missing = g.video_frames - place.count
        if place.segment is None:
            samples = np.zeros(self._manifest.audio.window(g.video_frames), np.float32)
        else:
            samples = self._sound(place, place.first - missing, g.video_frames)
        chunk = ChunkInput(place.number, crops, latents, samples, self._noise(place.number), missing)
        return _Started(place, sources, self._stream.start(chunk, self._timed))

    def _start_ahead(self, place: Place | None) -> None:
        """Start the chunk at `place`: the device works while frames are composited."""
        if place is None:
            return
        try:
            self._ahead = self._start(place, self._look(place))
        except Exception as error:
            self._ahead = _Started(place, [], _Failed(error))

    def _composite(self, source: SourceFrame, picture: Array) -> NDArray[np.uint8]:
        if source.matrix is None:
            return source.image.copy()
        return self._face.composite(source.image, picture, source.crop, source.matrix)

    def _noise(self, chunk: int) -> list[Array]:
        """Unit noise [C, c, h, w] for each pass of a chunk: a function of the seed and the chunk alone."""
        g = self._manifest.geometry
        rng = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, chunk]))
        shape = (g.latent_channels, g.chunk_frames, *g.latent_size)
        return [rng.standard_normal(shape, np.float32) for _ in self._manifest.t_list[:-1]]
