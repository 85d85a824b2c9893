"""Chunks on a CPU, on two lanes: while one thread decodes a chunk, another is at the passes of the next one.

The session's thread is the third: it finds faces for the chunk to come, and blends the pictures of the one before. What
is computed, and in which order within each state, is as in `SteppedChunks`; so are the pictures, to the last bit.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..bundle import Manifest
from .base import Array, ChunkInput, PendingChunk, Stream, Timed
from .stepped import SteppedChunks


@runtime_checkable
class Retractable(Stream, Protocol):
    """A stream whose `decode` may run beside its other calls, and whose last chunk can be taken back.

    Attributes:
        overlaps: whether there is a second thread to do so.
    """

    overlaps: bool

    def retract(self, *, encoded: bool) -> None:
        """Memories of the codec as they were before the last chunk, which was decoded, and `encoded` if that is True.

        The ring needs nothing: `begin_chunk` may be called again for the chunk that it was called for last.
        """


class OverlappedChunks:
    """See `ChunkStream`; arguments as of `SteppedChunks`. After `close` a graph that runs is not waited for."""

    ahead = True

    def __init__(self, manifest: Manifest, stream: Retractable, latent_mask: Array) -> None:
        self._stream, self._steps = stream, SteppedChunks(manifest, stream, latent_mask)
        self._passes = ThreadPoolExecutor(1, thread_name_prefix="lipstream-passes")
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="lipstream-decode")
        self._context: Future[None] | None = None

    def start(self, chunk: ChunkInput, timed: Timed) -> PendingChunk:
        """See `ChunkStream`."""
        before = self._context

        def generate() -> Future[Array]:
            if before is not None:
                before.result()  # it is done; an error of its makes all that follows useless
            latent = self._steps.denoise(chunk, timed)
            return self._decoder.submit(self._steps.decode, latent, chunk, timed)

        decoding = self._passes.submit(generate)
        self._context = self._passes.submit(self._steps.finish, timed)
        return _Pending(self._stream, chunk, decoding, self._context)

    def close(self) -> None:
        """See `ChunkStream`."""
        for lane in (self._passes, self._decoder):
            lane.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Pending:
    """See `PendingChunk`."""

    stream: Retractable
    chunk: ChunkInput
    decoding: Future[Future[Array]]
    context: Future[None]

    def pictures(self) -> Array:
        return self.decoding.result().result()

    def drop(self) -> None:
        self.pictures()
        self.context.result()
        self.stream.retract(encoded=self.chunk.crops is not None)
