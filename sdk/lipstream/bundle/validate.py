"""Checks that the numbers, graphs and constants of a bundle are valid and consistent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleCorruptError
from ..precision import PRECISIONS
from .manifest import CANVAS_HEIGHT, CANVAS_WIDTH, CLIP_ENCODER, IDENTITY, MANIFEST, REBUILD, SIGNATURE, Manifest
from .onnx_header import BFLOAT16, FLOAT, INT64, OnnxHeader, Shape, Tensor

_BOUNDS: dict[str, tuple[int, int]] = {
    "latent_channels": (1, 1024),
    "spatial": (1, 64),
    "temporal": (1, 16),
    "chunk_frames": (1, 64),
    "window": (1, 4096),
    "sink": (0, 4096),
    "tokens": (1, 1 << 16),
    "num_heads": (1, 1024),
    "head_dim": (2, 1024),
    "num_layers": (1, 1024),
    "sample_rate": (4_000, 192_000),
    "samples_per_frame": (1, 1 << 16),
    "lookback": (0, 1 << 24),
    "lookahead": (0, 1 << 20),
    "features": (1, 1 << 20),
}
OPERATORS = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Reciprocal", "Abs", "Exp", "Log", "Cos", "Sin", "Clip"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "Where", "Min", "Max"),
        *("Relu", "LeakyRelu", "Gelu", "Erf", "Tanh", "Sigmoid", "HardSigmoid", "Softmax", "Swish", "Round", "Floor"),
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "Einsum", "RotaryEmbedding"),
        *("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization"),
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "MaxPool", "AveragePool"),
        *("Reshape", "Transpose", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape"),
        *(
            "Gather",
            "GatherND",
            "GatherElements",
            "ScatterND",
            "Pad",
            "Tile",
            "Expand",
            "Range",
            "Resize",
            "DepthToSpace",
        ),
        *("Cast", "CastLike", "Constant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("MatMulInteger", "QLinearMatMul", "lipstream:KVRingWrite"),
    }
)
"""What graphs consist of. Without loops, conditions, and tensors of a size that a graph computes from nothing."""
_LARGEST_SIDE = 4096  # pixels of a crop
_MOST_PASSES = 64


def parse_manifest(text: str, where: Path) -> Manifest:
    """Parse `text`, the contents of the manifest file `where`, and check its numbers.

    Raises:
        BundleVersionError, BundleCorruptError: as `Manifest.parse`; or a value is out of range.
    """
    manifest = Manifest.parse(text, where)
    try:
        check_manifest(manifest)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleCorruptError(f"{where}: {error}", fix=REBUILD) from error
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Raise ValueError, which says what is wrong, for invalid numbers or file names of a manifest."""
    g, a = manifest.geometry, manifest.audio
    if not isinstance(manifest.model, dict):
        raise ValueError(f"a model of {manifest.model!r}")
    for name, value in {**vars(g), **vars(a)}.items():
        if name in _BOUNDS:
            low, high = _BOUNDS[name]
            if not _whole(value) or not low <= value <= high:
                raise ValueError(f"{name} of {value!r}, not a whole number from {low} to {high}")
    for name, size in {"crop_size": g.crop_size, "latent_size": g.latent_size}.items():
        if len(size) != 2 or not all(_whole(side) and 1 <= side <= _LARGEST_SIDE for side in size):
            raise ValueError(f"a {name} of {size!r}")
    if g.crop_size != (g.spatial * g.latent_size[0], g.spatial * g.latent_size[1]):
        raise ValueError(f"crops of {g.crop_size} are not {g.spatial} times the latents of {g.latent_size}")
    box = g.crop_box
    if len(box) != 4 or not all(_real(side) for side in box):
        raise ValueError(f"a crop_box of {box!r}")
    if not (0 <= box[0] < box[2] <= CANVAS_WIDTH and 0 <= box[1] < box[3] <= CANVAS_HEIGHT):
        raise ValueError(f"a crop_box of {box!r} on a canvas of {CANVAS_WIDTH} x {CANVAS_HEIGHT}")
    if g.sequence not in ("reference", "masked"):
        raise ValueError(f"a sequence of {g.sequence!r}")
    if g.head_dim % 2:
        raise ValueError(f"a head_dim of {g.head_dim}, which is odd")
    if g.window - g.sink < g.chunk_frames or (g.window - g.sink) % g.chunk_frames:
        raise ValueError(f"a window of {g.window} with sink {g.sink} is not whole chunks of {g.chunk_frames}")
    times = manifest.t_list
    if not 2 <= len(times) <= _MOST_PASSES or not all(map(_real, times)):
        raise ValueError(f"times of {times!r}")
    if times[-1] != 0 or times[0] > 1 or any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"times of {times!r}, which do not decrease from at most 1 to 0")
    if manifest.precision not in PRECISIONS:
        raise ValueError(f"a precision of {manifest.precision!r}, not one of {', '.join(PRECISIONS)}")
    if manifest.plans is not None:
        manifest.plans.check()
    if not isinstance(manifest.files, dict):
        raise ValueError(f"files of {manifest.files!r}")
    for name, file in manifest.files.items():
        if not plain(name):
            raise ValueError(f"the file name {name!r} is not a plain file name")
        if name in (MANIFEST, SIGNATURE):
            raise ValueError(f"a manifest that lists {name}")
        kinds = {key: type(value) for key, value in file.items()} if isinstance(file, dict) else None
        if kinds != {"bytes": int, "sha256": str} or file["bytes"] < 0:
            raise ValueError(f"the file {name} is {file!r}")
    if any(name.endswith(".plan") for name in manifest.files) != (manifest.plans is not None):
        raise ValueError("plan files without a section plans in the manifest, or such a section without plan files")


def plain(name: object) -> bool:
    """Whether `name` is a plain file name on every system: no folder, no drive, not hidden."""
    if not isinstance(name, str) or not name or name.startswith(".") or len(name) > 255 or not name.isprintable():
        return False
    return PurePosixPath(name).name == name and PureWindowsPath(name).name == name


def check_constants(manifest: Manifest, constants: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError for a constant that is missing, not finite, or of another shape or type than required."""
    g = manifest.geometry
    graphs = manifest.graphs
    dim = g.num_heads * g.head_dim
    wanted: dict[str, Shape] = {}
    if "video_encoder" in graphs:
        wanted |= {"mask.pixel": g.crop_size}
    for name in ("mask.pixel", "mask.composite"):
        if name in constants:
            wanted[name] = g.crop_size
    if "mask.latent" in constants:
        wanted["mask.latent"] = g.latent_size
    if IDENTITY in constants:
        wanted[IDENTITY] = (g.latent_channels, 1, *g.latent_size)
    if "denoiser" in graphs:
        steps = len(manifest.t_list)
        wanted |= {f"modulation.{i}": (6 * g.num_layers + 2, dim) for i in range(steps)}
        prompt = (g.num_heads, None, g.head_dim)
        wanted |= {f"text_{kind}.{i}": prompt for kind in "kv" for i in range(g.num_layers)}
    for name, shape in wanted.items():
        if name not in constants:
            raise ValueError(f"the constant {name} is missing")
        _fits(name, constants[name].shape, shape)
    for name, value in constants.items():
        if value.dtype != np.float32:
            raise ValueError(f"the constant {name} is {value.dtype}, not float32")
        if not np.isfinite(value).all():
            raise ValueError(f"the constant {name} has values that are not finite")
        if name.startswith("mask.") and value.size and not (value.min() >= 0 and value.max() <= 1):
            raise ValueError(f"the mask {name} has values outside 0..1")


def check_graph(manifest: Manifest, name: str, header: OnnxHeader) -> None:
    """Raise ValueError for foreign operators in the graph `name`, or if it does not match the manifest."""
    if foreign := sorted(header.operators - OPERATORS):
        raise ValueError(f"{name} has the operators {', '.join(foreign[:5])}, which no student needs")
    inputs, outputs = signature(manifest, name)
    for kind, found, wanted in (("input", header.inputs, inputs), ("output", header.outputs, outputs)):
        for tensor, (dtype, shape) in wanted.items():
            if tensor in found:
                _match(f"{kind} {tensor} of {name}", found[tensor], dtype, shape)
            elif kind == "output" or tensor in _NEEDED[name]:
                raise ValueError(f"{name} has no {kind} {tensor}")
        for tensor in found:
            if tensor not in wanted and not tensor.startswith(("memory.", "memory_out.")):
                raise ValueError(f"{name} has an {kind} {tensor}, which is unknown")
    memories = {key.removeprefix("memory."): x for key, x in header.inputs.items() if key.startswith("memory.")}
    after = {key.removeprefix("memory_out."): x for key, x in header.outputs.items() if key.startswith("memory_out.")}
    if memories != after or any(x.dtype not in (FLOAT, BFLOAT16) or not _fixed(x.shape) for x in memories.values()):
        raise ValueError(f"the memories of {name} differ between its inputs and its outputs")


_NEEDED = {
    "audio_encoder": {"samples"},
    CLIP_ENCODER: {"samples", "count"},
    "video_encoder": {"frames", "mask"},
    "video_decoder": {"latent"},
    "denoiser": {"latent", "condition", "audio", "modulation", "slot"},
}
Signature = dict[str, tuple[int, Shape]]


def signature(manifest: Manifest, name: str) -> tuple[Signature, Signature]:
    """Inputs and outputs that the graph `name` may have, except its memories: ONNX type and shape of each.

    K and V of ring and prompt have the type of the matrix products. Variable sizes: "attended" of the ring,
    "clip_frames" and "clip_samples" of a clip.
    """
    g, a = manifest.geometry, manifest.audio
    frames, (height, width), (rows, columns) = g.video_frames, g.crop_size, g.latent_size
    c, channels = g.chunk_frames, g.latent_channels
    latent = (FLOAT, (channels, c, rows, columns))
    pictures = (FLOAT, (frames, 3, height, width))
    features = (FLOAT, (frames, a.features))
    if name == "audio_encoder":
        samples = a.window(frames)
        return {"samples": (FLOAT, (samples,))}, {"features": features}
    if name == CLIP_ENCODER:
        clip: Signature = {"samples": (FLOAT, ("clip_samples",)), "count": (INT64, (1,))}
        return clip, {"features": (FLOAT, ("clip_frames", a.features))}
    if name == "video_encoder":
        encoded = (FLOAT, (2, channels, c, rows, columns))
        return {"frames": pictures, "mask": (FLOAT, (height, width))}, {"latents": encoded}
    if name == "video_decoder":
        return {"latent": latent}, {"frames": pictures}
    if name not in _NEEDED:
        raise ValueError(f"a graph {name}, which is unknown")
    dim, heads = g.num_heads * g.head_dim, (g.num_heads, g.head_dim)
    pairs = g.head_dim // 2 - 2 * (g.head_dim // 6)
    product = FLOAT if manifest.precision == "fp32" else BFLOAT16
    ring = (product, ("attended", g.tokens, *heads))
    layers = range(g.num_layers)
    inputs: Signature = {
        "latent": latent,
        "condition": (FLOAT, (3 * channels + 1, c, rows, columns)),
        "audio": features,
        "modulation": (FLOAT, (6 * g.num_layers + 2, dim)),
        "rope_cos": (FLOAT, (c, pairs)),
        "rope_sin": (FLOAT, (c, pairs)),
        "slot": (INT64, (1,)),
        **{f"text_{kind}.{i}": (product, (g.num_heads, None, g.head_dim)) for kind in "kv" for i in layers},
        **{f"{kind}.{i}": ring for kind in "kv" for i in layers},
    }
    return inputs, {"velocity": latent, **{f"{kind}_out.{i}": ring for kind in "kv" for i in layers}}


def _match(what: str, found: Tensor, dtype: int, shape: Shape) -> None:
    if found.dtype != dtype:
        raise ValueError(f"{what} has element type {found.dtype}, not {dtype}")
    _fits(what, found.shape, shape)


def _fits(what: str, found: Shape, wanted: Shape) -> None:
    """Raise ValueError unless the shape `found` matches `wanted`; None or a name in `wanted` matches any size."""
    same = len(found) == len(wanted)
    if not same or any(
        isinstance(b, int) and isinstance(a, int) and a != b for a, b in zip(found, wanted, strict=True)
    ):
        raise ValueError(f"{what} has shape {list(found)}, not {list(wanted)}")
    if any(isinstance(b, int) and not isinstance(a, int) for a, b in zip(found, wanted, strict=True)):
        raise ValueError(f"{what} has a variable size where {list(wanted)} is wanted")


def _fixed(shape: Shape) -> bool:
    return all(isinstance(size, int) and 0 < size <= 1 << 20 for size in shape)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
