"""One stream, graph by graph: the interface under `stepped` and `pipelined`."""

from __future__ import annotations

from typing import Protocol

from .base import Array


class Steps(Protocol):
    """One stream, called graph by graph. For the backends, and for tools that inspect intermediate results.

    Sizes as of `ChunkInput`; A audio features. Arrays are float32; a returned array belongs to the caller. Not
    thread-safe.
    """

    def encode_audio(self, samples: Array) -> Array:
        """Samples [lookback + n * samples_per_frame + lookahead] in [-1, 1] -> features [n, A]. Stateless."""

    def encode_video(self, frames: Array) -> Array:
        """Aligned crops [n, 3, H, W] in [0, 1] -> latents [2, C, c, h, w]: as they are, and with the mouth masked."""

    def begin_chunk(self, chunk: int) -> None:
        """Prepare the ring for `chunk` = 0, 1, 2, ...; call it before the first pass of that chunk."""

    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        """Pass `step` of the schedule: latent [C, c, h, w], condition [3 C + 1, c, h, w], audio [n, A] -> velocity."""

    def context(self, latent: Array, condition: Array, audio: Array) -> None:
        """The context pass at t = 0 over the finished chunk; later chunks attend to the K and V that it writes."""

    def decode(self, latent: Array) -> Array:
        """Latents [C, c, h, w] -> frames [n, 3, H, W] in [0, 1]."""
