"""Refuses graphs that ask for more memory than is in proportion to their inputs and outputs and the bundle's files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .manifest import CLIP_FRAMES, Geometry, Manifest
from .onnx_graph import Graph, read_graph
from .onnx_header import OnnxHeader, Shape, Tensor
from .sizes import BYTES, largest
from .validate import Signature, signature

FREE = 1 << 30
"""Bytes that every graph may need."""
PER_TENSOR, PER_FILE = 256, 8
"""Times the bytes of its largest input or output, and times those of the bundle's files, that it may need besides.

Graphs of students need at most a few times their largest input or output; a sound encoder some hundred times its
samples, which are small. Weights may be stored in 8 bits and computed with in 32.
"""
_MOST_NODES = 500_000


def check_memory(
    manifest: Manifest, constants: Mapping[str, NDArray[Any]], name: str, header: OnnxHeader, path: Path
) -> None:
    """Raise ValueError if the graph `name` in the file `path` needs too much, or it cannot be told what it needs.

    The graph must have passed `validate.check_graph`; all its sizes are then known from the manifest and the constants,
    for each number of attended frames. Raises OSError if it cannot be read.
    """
    try:
        _check(manifest, constants, name, header, read_graph(path))
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:  # what rules raise for an invalid node
        raise ValueError(f"{name}: {error}") from error


def attended_lengths(geometry: Geometry) -> list[int]:
    """The numbers of frames that the chunks of a stream attend to: one chunk more each time, until the ring is full."""
    g = geometry
    return [min(frames, g.window) for frames in range(g.chunk_frames, g.window + g.chunk_frames, g.chunk_frames)]


def _check(
    manifest: Manifest, constants: Mapping[str, NDArray[Any]], name: str, header: OnnxHeader, graph: Graph
) -> None:
    stored = sum(file["bytes"] for file in manifest.files.values())
    weights = sum(math.prod(constant.shape) for constant in graph.constants.values())
    if weights > 2 * stored:  # the smallest types have two numbers in a byte
        raise ValueError(f"it has weights of {weights} numbers, more than its files hold")
    taken, given = signature(manifest, name)
    lengths = attended_lengths(manifest.geometry) if "k.0" in taken else [0]
    if len(graph.nodes) * len(lengths) > _MOST_NODES:
        raise ValueError(f"it has {len(graph.nodes)} nodes and {len(lengths)} numbers of attended frames")
    for attended in lengths:
        variable = {
            "attended": attended,
            "clip_frames": CLIP_FRAMES,
            "clip_samples": CLIP_FRAMES * manifest.audio.samples_per_frame,
        }
        inputs = _sizes(header.inputs, taken, variable, constants)
        outputs = _sizes(header.outputs, given, variable, constants)
        most = max(BYTES * math.prod(sizes) for sizes in (*inputs.values(), *outputs.values()))
        allowed = FREE + PER_TENSOR * most + PER_FILE * stored
        needed, tensor = largest(graph, inputs, outputs)
        if needed > allowed:
            raise ValueError(
                f"it needs {needed / 2**30:.1f} GiB when it computes {tensor}; with its inputs and outputs and the "
                f"bundle's files at most {allowed / 2**30:.1f} GiB are in proportion"
            )


def _sizes(
    tensors: Mapping[str, Tensor], wanted: Signature, variable: Mapping[str, int], constants: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """Sizes of inputs or outputs, for the sizes `variable` by name."""

    def size(name: str, axis: int, found: int | str | None) -> int:
        if isinstance(found, int):
            return found
        shape: Shape = wanted[name][1]
        if isinstance(by := shape[axis], str):
            return variable[by]
        if name not in constants:
            raise ValueError(f"the constant {name} is missing")
        return int(constants[name].shape[axis])

    return {name: tuple(size(name, i, x) for i, x in enumerate(tensor.shape)) for name, tensor in tensors.items()}
