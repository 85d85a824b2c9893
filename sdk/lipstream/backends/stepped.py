"""Streams that run one graph per call; each call returns its result to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .base import Array, Bytes, ChunkInput, PendingChunk, Timed
from .sampler import assemble_condition, generate_chunk
from .steps import Steps


def to_planes(crops: Bytes) -> Array:
    """Crops uint8 [n, H, W, 3] as the graphs take them: float32 [n, 3, H, W] in [0, 1]."""
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


@dataclass(frozen=True)
class _Finished(PendingChunk):
    """A chunk that is complete when `start` returns. See `PendingChunk`."""

    found: Array

    def crops(self) -> Array:
        return self.found

    def drop(self) -> None:
        """Never called: only chunks that were started ahead are dropped, and this stream starts none."""


class SteppedStream:
    """See `ChunkStream`: runs one chunk at a time. A chunk's context pass is delayed until the next one starts.

    Args:
        t_list: times of the passes, noisiest first, ending in 0.
        sequence: "reference" or "masked", see `lipstream.bundle.Geometry`.
        latent_mask: [h, w], 1 where the picture is kept.
        identity: latents [C, 1, h, w] of the frame that shows the person; None: the stream's first one.
    """

    ahead = False
    composites = False

    def __init__(
        self,
        steps: Steps,
        t_list: Sequence[float],
        sequence: str,
        latent_mask: Array,
        identity: Array | None = None,
    ) -> None:
        self._steps, self._t_list, self._sequence, self._latent_mask = steps, t_list, sequence, latent_mask
        self._identity = identity
        self._unfinished: tuple[Array, Array, Array] | None = None

    def start(self, chunk: ChunkInput, timed: Timed) -> PendingChunk:
        """See `ChunkStream`."""
        self.finish(timed)
        return _Finished(self.decode(self.denoise(chunk, timed), chunk, timed))

    def encode_video(self, crops: Bytes) -> Array:
        """See `ChunkStream`."""
        return self._steps.encode_video(to_planes(crops))

    def finish(self, timed: Timed) -> None:
        """Run the context pass of the chunk that was denoised last, if it has not run yet."""
        if self._unfinished is not None:
            with timed("context"):
                self._steps.context(*self._unfinished)
                self._unfinished = None

    def denoise(self, chunk: ChunkInput, timed: Timed) -> Array:
        """Clean latents [C, c, h, w] of a chunk; `finish` runs its context pass later."""
        steps = self._steps
        with timed("reference"):
            if chunk.latents is None:
                assert chunk.crops is not None
                plain, masked = steps.encode_video(to_planes(chunk.crops))
            else:
                plain, masked = chunk.latents
        with timed("audio"):
            features = steps.encode_audio(chunk.samples) if chunk.features is None else chunk.features.copy()
            features[: chunk.missing] = features[chunk.missing]
        with timed("denoise"):
            if self._identity is None:
                self._identity = plain[:, :1].copy()
            sequence = masked if self._sequence == "masked" else plain
            condition = assemble_condition(self._identity, self._latent_mask, masked, sequence)
            steps.begin_chunk(chunk.number)
            latent = generate_chunk(steps, self._t_list, chunk.noises, condition, features)
        self._unfinished = latent, condition, features
        return latent

    def decode(self, latent: Array, chunk: ChunkInput, timed: Timed) -> Array:
        """The array that `PendingChunk.crops` returns."""
        with timed("decode"):
            pictures: Array = self._steps.decode(latent)[chunk.missing :].transpose(0, 2, 3, 1)
        return pictures

    def close(self) -> None:
        """Do nothing: Python frees the memory."""
