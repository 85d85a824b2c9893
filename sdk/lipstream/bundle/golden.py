"""Reference outputs: the graphs run on the same inputs on every machine, and the outputs are compared with stored ones.

`lipstream export` runs the float32 model on these inputs and stores samples of its outputs in the bundle, with the
error that the bundle's precision causes in PyTorch; `lipstream verify` runs the engines on them.
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

from ..errors import BundleCorruptError
from .manifest import Manifest
from .rope import temporal_tables
from .validate import signature

REFERENCE = "reference.safetensors"
SAMPLES = 1 << 13
"""Number of values stored for each output."""
FACTOR, FLOOR = 2.0, 5e-3
"""The relative error of an engine may be FACTOR times the error of its precision in PyTorch, plus FLOOR.

If the weights are stored in bfloat16, as the released ones are, the reference has that precision and its error is 0.
"""

Arrays = dict[str, NDArray[Any]]


def probe_inputs(
    manifest: Manifest, constants: Mapping[str, NDArray[np.float32]], graph: str, memories: Mapping[str, Any]
) -> Arrays:
    """Inputs of `graph` by name, float32 (slot: int64), the ring full and the chunk at slot 0.

    Args:
        memories: shapes of the inputs `memory.i` that the graph has.
    """
    g = manifest.geometry
    chunk = 4 * g.window  # long after the start of a stream, and in the first block
    rolling = (g.window - g.sink) // g.chunk_frames
    frames = (chunk - chunk % rolling) * g.chunk_frames + np.arange(g.chunk_frames)
    cos, sin = temporal_tables(frames, g.head_dim)
    fixed: dict[str, NDArray[Any] | None] = {
        "slot": np.zeros(1, np.int64),
        "rope_cos": cos,
        "rope_sin": sin,
        "time": constants.get("time.0"),
        "modulation": constants.get("modulation.0"),
        "mask": constants.get("mask.pixel"),
    }
    inputs: Arrays = {}
    for name, (_, shape) in signature(manifest, graph)[0].items():
        sizes = tuple(g.window if size == "attended" else size for size in shape)
        value = constants[name] if name.startswith("text_") else fixed.get(name)
        inputs[name] = _random(graph, name, sizes) if value is None else value
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
        outputs: samples of every output, by "graph/output". errors: relative error of the precision, likewise.
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

    def compare(self, graph: str, outputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Relative errors of the `outputs` of `graph`, by "graph/output"."""
        names = {f"{graph}/{name}": x for name, x in outputs.items()}
        return {name: relative_error(sample(x), self.outputs[name]) for name, x in names.items()}
