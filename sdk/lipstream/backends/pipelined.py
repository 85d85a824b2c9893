"""Chunks on a CPU, pipelined over two threads: one decodes a chunk while the other runs the next one's passes.

The session's thread is the third: it tracks faces for the following chunk and composites the pictures of the previous
one. Each state gets the same calls in the same order as in `SteppedStream`, so the pictures are bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from .base import Array, Bytes, ChunkInput, PendingChunk, Timed
from .stepped import SteppedStream
from .steps import Steps


class RetractableSteps(Steps, Protocol):
    """Steps whose `decode` may run in parallel with the other calls, and whose last chunk can be undone."""

    def retract(self, *, encoded: bool) -> None:
        """Restore the codec's memories from before the last chunk: the decoder's and, if `encoded`, the encoder's.

        The ring is not restored: `begin_chunk` may be called again for the chunk that it was called for last.
        """


class PipelinedStream:
    """See `ChunkStream`; arguments as of `SteppedStream`. `close` does not wait for a graph that is running."""

    ahead = True
    composites = False

    def __init__(
        self,
        steps: RetractableSteps,
        t_list: Sequence[float],
        sequence: str,
        latent_mask: Array,
        identity: Array | None = None,
    ) -> None:
        self._steps, self._stepped = steps, SteppedStream(steps, t_list, sequence, latent_mask, identity)
        self._passes = ThreadPoolExecutor(1, thread_name_prefix="lipstream-passes")
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="lipstream-decode")
        self._context: Future[None] | None = None

    def start(self, chunk: ChunkInput, timed: Timed) -> PendingChunk:
        """See `ChunkStream`."""
        before = self._context

        def generate() -> Future[Array]:
            if before is not None:
                before.result()  # it has finished; after an error in it all later chunks would be wrong
            latent = self._stepped.denoise(chunk, timed)
            return self._decoder.submit(self._stepped.decode, latent, chunk, timed)

        decoding = self._passes.submit(generate)
        self._context = self._passes.submit(self._stepped.finish, timed)
        return _Pending(self._steps, chunk, decoding, self._context)

    def encode_video(self, crops: Bytes) -> Array:
        """See `ChunkStream`."""
        return self._stepped.encode_video(crops)

    def close(self) -> None:
        """See `ChunkStream`."""
        for worker in (self._passes, self._decoder):
            worker.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Pending(PendingChunk):
    """See `PendingChunk`."""

    steps: RetractableSteps
    chunk: ChunkInput
    decoding: Future[Future[Array]]
    context: Future[None]

    def crops(self) -> Array:
        return self.decoding.result().result()

    def drop(self) -> None:
        self.crops()
        self.context.result()
        self.steps.retract(encoded=self.chunk.crops is not None)
