"""The K/V ring in device memory, written in place if the engines do that, double-buffered otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ... import _native
from ...bundle import Geometry, Manifest
from ...bundle.rope import temporal_tables
from ..device import Kernels, move_sink
from .cuda import Anything, Lane
from .engine import Engine

_TYPES = {"FLOAT": "float32", "BF16": "bfloat16", "FP8": "float8_e4m3"}
"""The kernels' names of TensorRT's types."""


class EngineRing:
    """See `lipstream.backends.ring.Ring`; docs/architecture.md draws it.

    A chunk that is started again overwrites what it wrote the first time; everything else is unchanged.

    Args:
        in_place: rings are [1, H, window T, D], and a pass writes into the one it reads. Otherwise they are
            [window, T, H, D], and each pass reads one of two and writes the other.
        at: addresses of the parts that `sizes` names.
    """

    def __init__(
        self, manifest: Manifest, engine: Engine, in_place: bool, kernels: Kernels, at: Mapping[str, int]
    ) -> None:
        self._geometry, self._in_place, self._kernels, self._at = manifest.geometry, in_place, kernels, at
        self._passes = len(manifest.t_list)
        self._dtype = _TYPES[engine.tensors["k.0"].dtype]
        self._begun = -1
        self.start(0)

    @staticmethod
    def sizes(geometry: Geometry, engine: Engine, in_place: bool) -> dict[str, int]:
        """Bytes of the parts of the ring's memory."""
        g = geometry
        frame = g.tokens * g.num_heads * g.head_dim * engine.tensors["k.0"].itemsize
        parts: dict[str, int] = {}
        for i in range(g.num_layers):
            for side in range(1 if in_place else 2):
                parts |= {f"k.{i}.{side}": g.window * frame, f"v.{i}.{side}": g.window * frame}
            parts[f"sink.{i}"] = max(g.sink, 1) * frame
        return parts

    @staticmethod
    def tables(geometry: Geometry) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shapes and types of the tables that the host computes for a chunk."""
        pairs = geometry.head_dim // 2 - 2 * (geometry.head_dim // 6)
        return {
            "rope_cos": ((geometry.chunk_frames, pairs), np.float32),
            "rope_sin": ((geometry.chunk_frames, pairs), np.float32),
            "turn_cos": ((pairs,), np.float32),
            "turn_sin": ((pairs,), np.float32),
            "slot": ((1,), np.int64),
            "attended": ((1,), np.int64),
        }

    def start(self, chunk: int) -> None:
        """Set the current chunk; `fill` computes its tables."""
        g = self._geometry
        self._chunk = chunk
        self.position = _native.ring_position(chunk, g.window, g.sink, g.chunk_frames)

    def fill(self, tables: Mapping[str, Anything]) -> None:
        """Write the chunk's tables to host memory."""
        g, p = self._geometry, self.position
        frames = np.arange(g.chunk_frames) + self._chunk * g.chunk_frames
        tables["rope_cos"][:], tables["rope_sin"][:] = temporal_tables(frames, g.head_dim)
        cos, sin = temporal_tables(np.array([p.shift]), g.head_dim)
        tables["turn_cos"][:], tables["turn_sin"][:] = cos[0], sin[0]
        tables["slot"][:], tables["attended"][:] = p.slot, p.valid

    def begin(self, lane: Lane, inputs: Mapping[str, int]) -> None:
        """Prepare the ring for the chunk, whose tables are on the device; see `lipstream.backends.ring.Ring.begin`."""
        side, at = self._side(0), self._at
        layers = [(at[f"k.{i}.{side}"], at[f"v.{i}.{side}"], at[f"sink.{i}"]) for i in range(self._geometry.num_layers)]
        move_sink(
            self._kernels,
            self._geometry,
            self.position,
            layers,
            (inputs["turn_cos"], inputs["turn_sin"]),
            keep=self._chunk != self._begun,
            dtype=self._dtype,
            heads_first=self._in_place,
            stream=int(lane.handle),
        )
        self._begun = self._chunk

    def key(self, step: int) -> tuple[int, ...]:
        """Identifies the addresses and shapes of pass `step` of this chunk."""
        return () if self._in_place else (self.position.valid, self._side(step))

    def addresses(self, step: int) -> dict[str, int]:
        """Addresses of the rings that pass `step` of this chunk reads and writes."""
        now, after = self._side(step), self._side(step + 1)
        names = [(kind, i) for kind in "kv" for i in range(self._geometry.num_layers)]
        read = {f"{kind}.{i}": self._at[f"{kind}.{i}.{now}"] for kind, i in names}
        return read | {f"{kind}_out.{i}": self._at[f"{kind}.{i}.{after}"] for kind, i in names}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the input rings, if they vary."""
        if self._in_place:
            return {}
        g = self._geometry
        shape = (self.position.valid, g.tokens, g.num_heads, g.head_dim)
        return {f"{kind}.{i}": shape for kind in "kv" for i in range(g.num_layers)}

    def _side(self, step: int) -> int:
        """Index of the buffer that pass `step` of this chunk reads."""
        return 0 if self._in_place else (self._chunk * self._passes + step) % 2
