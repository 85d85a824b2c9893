"""The released model's K/V cache, reduced to indices of latent frames: the reference for the ring."""

from __future__ import annotations


class ReleasedCache:
    """A list of frames, sink first; grown by each chunk and, when full, cut right after the sink."""

    def __init__(self, window: int, sink: int, chunk_frames: int) -> None:
        self.window, self.sink, self.chunk_frames = window, sink, chunk_frames
        self.frames: list[int] = []

    def attended(self, chunk: int) -> list[int]:
        """Frames that a pass of `chunk` attends to, in the order in which RoPE numbers them 0, 1, 2, ..."""
        cached, live = self.frames, self._live(chunk)
        if len(cached) + len(live) <= self.window:
            return cached + live
        kept = len(cached) + len(live) - (self.window - self.sink)
        return cached[: self.sink] + cached[max(self.sink, kept) :] + live

    def leave(self, chunk: int) -> None:
        """The context pass of `chunk`: evict, append."""
        live = self._live(chunk)
        excess = max(0, len(self.frames) + len(live) - self.window)
        self.frames = self.frames[: self.sink] + self.frames[self.sink + excess :] + live

    def _live(self, chunk: int) -> list[int]:
        return [*range(chunk * self.chunk_frames, (chunk + 1) * self.chunk_frames)]
