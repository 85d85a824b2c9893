"""The K/V ring of one stream in host memory; index arithmetic and kernels come from csrc.

Per layer K and V are [window, T, H, D]: slots of latent frames, tokens, heads, head dimension. The attended frames are
always the prefix ``[0, position.valid)``. docs/architecture.md draws it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..bundle import Geometry
from ..bundle.rope import temporal_tables


class Ring:
    """K and V of every layer, double-buffered: a pass reads one buffer and writes the whole prefix of the other.

    ONNX Runtime does not promise that an output may share its input's memory; two buffers cost one copy per pass.

    Attributes:
        k, v: per layer the buffer that holds the current state. position: of the current chunk.
        cos, sin: float32 [chunk_frames, temporal pairs] tables of the current chunk's own frames.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        frame = (geometry.tokens, geometry.num_heads, geometry.head_dim)

        def zeros(frames: int) -> list[NDArray[np.float32]]:
            return [np.zeros((frames, *frame), np.float32) for _ in range(geometry.num_layers)]

        self.k, self.v, self._sink_k = zeros(geometry.window), zeros(geometry.window), zeros(geometry.sink)
        self._spare_k, self._spare_v = zeros(geometry.window), zeros(geometry.window)
        self._begun = -1
        self.begin(0)

    def begin(self, chunk: int) -> None:
        """Prepare the ring for `chunk`: copy sink frames out of the block that it overwrites, and re-anchor the sink.

        May be called again for the last chunk, to run its passes again.
        """
        g = self.geometry
        self.position = p = _native.ring_position(chunk, g.window, g.sink, g.chunk_frames)
        self.cos, self.sin = temporal_tables(np.arange(g.chunk_frames) + chunk * g.chunk_frames, g.head_dim)
        cos, sin = (table[0] for table in temporal_tables(np.array([p.shift]), g.head_dim))
        rolling = g.window - g.sink
        for k, v, sink_k in zip(self.k, self.v, self._sink_k, strict=True):
            if p.keep_count and chunk != self._begun:  # the second time the block holds the chunk's own K and V
                _native.ring_keep(k, v, sink_k, p.keep_slot, rolling, p.keep_first, p.keep_count)
            if p.anchored:
                _native.ring_anchor(k, sink_k, rolling, p.anchored, cos, sin, threads=1)  # a copy: more are not faster
        self._begun = chunk

    def attended(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Per layer the attended prefix of K and V; contiguous views."""
        return [(k[: self.position.valid], v[: self.position.valid]) for k, v in zip(self.k, self.v, strict=True)]

    def written(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Per layer the buffers to which a pass writes its prefix; `swap` then makes them current."""
        spare = zip(self._spare_k, self._spare_v, strict=True)
        return [(k[: self.position.valid], v[: self.position.valid]) for k, v in spare]

    def swap(self) -> None:
        self.k, self._spare_k = self._spare_k, self.k
        self.v, self._spare_v = self._spare_v, self.v
