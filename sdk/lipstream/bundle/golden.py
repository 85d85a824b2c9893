"""Reference outputs: the graphs run on the same inputs on every machine, and the outputs are compared with stored ones.

`lipstream export` runs the float32 model on these inputs and stores samples of its outputs in the bundle, with the
error that the bundle's precision causes in PyTorch; `lipstream verify` runs the engines on them. Graphs with the ring
run as in several chunks of a stream: one for each number of attended frames. What they must not read holds `UNREAD`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from .. import _native
from ..errors import BundleCorruptError
from .manifest import Geometry, Manifest
from .rope import temporal_tables
from .validate import signature

REFERENCE = "reference.safetensors"
SAMPLES = 1 << 12
"""Number of values stored for each output."""
UNREAD = 8192.0
"""In slots that no pass may read: one that did would give outputs that are far off. Exact in bfloat16."""
FACTOR, FLOOR = 2.0, 5e-3
"""The relative error of an engine may be FACTOR times the error of its precision in PyTorch, plus FLOOR.

If the weights are stored in bfloat16, as the released ones are, the reference has that precision and its error is 0.
"""

Arrays = dict[str, NDArray[Any]]


def probe_chunks(manifest: Manifest, graph: str) -> list[int]:
    """The chunks of a stream as in which `graph` is run: with the ring, the first of each number of attended frames.

    Together they write every block of the ring.
    """
    return [*first_chunks(manifest.geometry).values()] if "k.0" in signature(manifest, graph)[0] else [0]


def first_chunks(geometry: Geometry) -> dict[int, int]:
    """The first chunk of a stream with each number of attended frames, by that number."""
    g = geometry
    found: dict[int, int] = {}
    for chunk in range(g.window // g.chunk_frames + 2):
        found.setdefault(_native.ring_position(chunk, g.window, g.sink, g.chunk_frames).valid, chunk)
    return found


def probe_inputs(
    manifest: Manifest,
    constants: Mapping[str, NDArray[np.float32]],
    graph: str,
    memories: Mapping[str, Any],
    chunk: int | None = None,
) -> Arrays:
    """Inputs of `graph` by name, float32 (slot: int64).

    Args:
        memories: shapes of the inputs `memory.i` that the graph has.
        chunk: of the stream, one of `probe_chunks`; by default its last, with a full ring. The rings have the
            attended frames only, with UNREAD in the chunk's own block, which the graph overwrites.
    """
    g = manifest.geometry
    chunk = probe_chunks(manifest, graph)[-1] if chunk is None else chunk
    position = _native.ring_position(chunk, g.window, g.sink, g.chunk_frames)
    cos, sin = temporal_tables(chunk * g.chunk_frames + np.arange(g.chunk_frames), g.head_dim)
    fixed: dict[str, NDArray[Any] | None] = {
        "slot": np.full(1, position.slot, np.int64),
        "rope_cos": cos,
        "rope_sin": sin,
        "modulation": constants.get("modulation.0"),
        "mask": constants.get("mask.pixel"),
    }
    inputs: Arrays = {}
    for name, (_, shape) in signature(manifest, graph)[0].items():
        sizes = tuple(position.valid if size == "attended" else size for size in shape)
        value = constants[name] if name.startswith("text_") else fixed.get(name)
        inputs[name] = _random(graph, name, sizes) if value is None else value
        if "attended" in shape:
            # Each frame has a mean of its own: means of plain noise hardly show whether a frame was attended.
            inputs[name] += 2 * _random(graph, f"{name}/frames", (position.valid, 1, *sizes[2:]))
            inputs[name][position.slot : position.slot + g.chunk_frames] = UNREAD
    return inputs | {name: _random(graph, name, tuple(shape)) for name, shape in memories.items()}


def _random(graph: str, name: str, shape: tuple[Any, ...]) -> NDArray[np.float32]:
    rng = np.random.default_rng(zlib.crc32(f"{graph}/{name}".encode()))
    if name == "frames":
        return rng.random(shape, np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(0.1 if name == "samples" else 1)


def sample(output: NDArray[Any]) -> NDArray[np.float32]:
    """Up to SAMPLES values of an output, at positions that depend only on its size."""
    flat = output.reshape(-1)
    if flat.size > SAMPLES:
        flat = flat[np.random.default_rng(flat.size).integers(flat.size, size=SAMPLES)]
    return np.ascontiguousarray(flat, np.float32)


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Norm of the difference over norm of `expected` (over 1 where that is zero), in float64."""
    wanted = expected.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / (np.linalg.norm(wanted) or 1.0))


class Reference:
    """Outputs of the float32 model for the probe inputs, and the error of a precision in PyTorch.

    Attributes:
        outputs: samples of every output, by `key`. errors: relative error of the precision, likewise.
    """

    def __init__(self, outputs: dict[str, NDArray[np.float32]], errors: dict[str, float]) -> None:
        self.outputs, self.errors = outputs, errors

    def dump(self) -> bytes:
        return save(self.outputs, {"errors": json.dumps(self.errors)})

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read a file that holds `dump`. Raises BundleCorruptError."""
        try:
            with safe_open(path, "np") as file:
                errors = json.loads(file.metadata()["errors"])
                return cls({name: file.get_tensor(name) for name in file.keys()}, errors)  # noqa: SIM118
        except Exception as error:  # the exceptions of safetensors share no base class
            raise BundleCorruptError(f"{path} cannot be read: {error}", fix="export the bundle again") from error

    def allowed(self, name: str) -> float:
        """Allowed relative error of an engine at the output `name`."""
        return FACTOR * self.errors[name] + FLOOR

    def off(self, errors: Mapping[str, float]) -> list[str]:
        """Names of the outputs whose relative error, by `key`, is larger than allowed, or NaN."""
        return [name for name, error in errors.items() if not error <= self.allowed(name)]

    def compare(self, graph: str, chunk: int, outputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Relative errors of the `outputs` of `graph` as in `chunk`, by `key`."""
        names = {key(graph, name, chunk): x for name, x in outputs.items()}
        return {name: relative_error(sample(x), self.outputs[name]) for name, x in names.items()}


def key(graph: str, output: str, chunk: int) -> str:
    """The name of an output of a graph, run as in `chunk` of a stream."""
    return f"{graph}/{output}@{chunk}"
