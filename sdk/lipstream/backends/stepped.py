"""One chunk's way from crops and sound to pictures: what it is made of, and how chunks go through the graphs."""

from __future__ import annotations

from dataclasses import dataclass

from ..bundle import Manifest
from .base import Array, ChunkInput, PendingChunk, Stream, Timed
from .sampler import assemble_condition, generate_chunk


@dataclass(frozen=True)
class _Done:
    """A chunk whose pictures are there."""

    found: Array

    def pictures(self) -> Array:
        return self.found

    def drop(self) -> None:
        """Nothing is under way."""


class SteppedChunks:
    """Chunks on a stream whose every pass returns to the host. The context pass waits until the next chunk starts.

    Args:
        latent_mask: [h, w], 1 where the picture is kept.
    """

    ahead = False

    def __init__(self, manifest: Manifest, stream: Stream, latent_mask: Array) -> None:
        self._manifest, self._latent_mask, self.stream = manifest, latent_mask, stream
        self._first_latent: Array | None = None
        self._unfinished: tuple[Array, Array, Array] | None = None

    def start(self, chunk: ChunkInput, timed: Timed) -> PendingChunk:
        """See `ChunkStream`."""
        self.finish(timed)
        return _Done(self.decode(self.denoise(chunk, timed), chunk, timed))

    def finish(self, timed: Timed) -> None:
        """The context pass of the chunk that was denoised last, if it is owed."""
        if self._unfinished is not None:
            with timed("context"):
                self.stream.context(*self._unfinished)
                self._unfinished = None

    def denoise(self, chunk: ChunkInput, timed: Timed) -> Array:
        """Clean latents of a chunk; its context pass is owed from then on."""
        stream = self.stream
        with timed("reference"):
            if chunk.latents is None:
                assert chunk.crops is not None
                plain, masked = stream.encode_video(chunk.crops)
            else:
                plain, masked = chunk.latents
        with timed("audio"):
            features = stream.encode_audio(chunk.samples)
            features[: chunk.missing] = features[chunk.missing]
        with timed("denoise"):
            if self._first_latent is None:
                self._first_latent = plain[:, :1].copy()
            sequence = masked if self._manifest.geometry.sequence == "masked" else plain
            condition = assemble_condition(self._first_latent, self._latent_mask, masked, sequence)
            stream.begin_chunk(chunk.number)
            latent = generate_chunk(stream, self._manifest.t_list, chunk.noises, condition, features)
        self._unfinished = latent, condition, features
        return latent

    def decode(self, latent: Array, chunk: ChunkInput, timed: Timed) -> Array:
        """What `PendingChunk.pictures` gives."""
        with timed("decode"):
            pictures: Array = self.stream.decode(latent)[chunk.missing :].transpose(0, 2, 3, 1)
        return pictures

    def close(self) -> None:
        """Nothing that Python does not free itself."""
