"""Files of weights: opened without executing code in them, unwrapped, and identified."""

from __future__ import annotations

import json
import math
import mmap
import pickle
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lipstream.errors import CheckpointError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from .distributed import open_folder

Weights = dict[str, Tensor]

_WRAPPINGS = (("model", "net"), ("net",), ("model_state",), ("state_dict",), ("model",))
"""Keys under which a training checkpoint has its weights; the first path that leads to tensors is taken."""
_TYPES = {
    **{"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64},
    **{"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn},
}
_PREFIXES = ("_core.", "model.", "module.")
_LISTED = 8


@dataclass(frozen=True)
class Kind:
    """The kind of a file of weights; `size` is "1.3b", "14b", or other sizes in words."""

    name: str
    size: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.size})" if self.size else self.name


def open_weights(path: Path, *, shapes_only: bool = False) -> Weights:
    """The tensors of a file by name without prefixes, memory-mapped.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote; or a folder of ``torch.distributed.checkpoint``, which is
            read into memory. For a training state without weights, the folder ``<stem>.net_model`` beside it is read.
        shapes_only: tensors on the device "meta"; only headers are read.

    Raises:
        CheckpointError: no such file; truncated; holds code; holds no weights.
    """
    if path.is_dir():
        return _plain(open_folder(path, shapes_only=shapes_only))
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}", fix="check the path")
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        found: Any = _open_safetensors(path, shapes_only)
    else:
        found = _open_torch(path, shapes_only)
    beside = path.with_name(f"{path.stem}.net_model")
    if isinstance(found, Mapping) and "iteration" in found and not {"net", "model"} & {*found} and beside.is_dir():
        return open_weights(beside, shapes_only=shapes_only)
    return _plain(_unwrapped(found, path))


def _open_safetensors(path: Path, shapes_only: bool) -> Weights:
    """Mapped read-only, so that the system does not reserve memory for it, as it does for `safe_open`."""
    try:
        with safe_open(path, "np"):  # checks the header and the file's length
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        weights = {}
        for name, entry in header.items():
            dtype, shape, (start, end) = _TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if shapes_only or start == end:
                weights[name] = torch.empty(shape, dtype=dtype, device="meta" if shapes_only else "cpu")
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the warning about the read-only buffer
                flat = torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=8 + length + start)
            weights[name] = flat.reshape(shape)
        return weights
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", expected="a complete .safetensors file", fix="copy it again"
        ) from error


def _open_torch(path: Path, shapes_only: bool) -> Any:
    try:
        if shapes_only:
            with FakeTensorMode():
                return torch.load(path, weights_only=True)
        try:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6
    except pickle.UnpicklingError as error:
        reason = textwrap.shorten(str(error), 200)
        raise CheckpointError(
            f"{path} is no plain file of weights; nothing in it was executed: {reason}",
            expected="tensors alone (torch.save of a state dict), or .safetensors",
            fix="convert it where you trust it: torch.save(model.state_dict(), OUT)",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = textwrap.shorten(str(error), 200)
        raise CheckpointError(
            f"{path} cannot be read: {reason}", expected="a complete file of weights", fix="copy it again"
        ) from error


def _unwrapped(found: Any, path: Path) -> Weights:
    candidates = [found]
    for keys in _WRAPPINGS:
        inner = found
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        candidates.append(inner)
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(isinstance(x, Tensor) for x in candidate.values()):
            return {str(name): x for name, x in candidate.items()}
    if isinstance(found, Tensor):
        return {"": found}
    what = f"a dict with {', '.join(map(str, list(found)[:_LISTED]))}" if isinstance(found, Mapping) else type(found)
    raise CheckpointError(f"{path} holds {what}", expected="weights by name")


def _plain(weights: Weights) -> Weights:
    """Without the prefixes that all names have, and without `base_layer`, which LoRA leaves in them."""
    for prefix in _PREFIXES * 2:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): x for name, x in weights.items()}
    return {name.replace(".base_layer.", "."): x for name, x in weights.items()}


def renamed(weights: Weights, names: Iterable[tuple[str, str]]) -> Weights:
    """The weights with every pattern of `names` in their names replaced, one after the other."""
    found = {}
    for name, x in weights.items():
        for theirs, ours in names:
            name = re.sub(theirs, ours, name)
        found[name] = x
    return found


def identify(weights: Mapping[str, Tensor]) -> Kind:
    """The kind of these weights, by names and shapes."""
    names = [*weights]
    if any(".lora_A." in name for name in names):
        return Kind("training delta or adapter", f"LoRA of rank {_first(weights, '.lora_A.').shape[0]}")
    for modulation, naming in (("blocks.0.modulation", ""), ("blocks.0.scale_shift_table", "diffusers naming, ")):
        if "patch_embedding.weight" in weights and modulation in weights:
            dim, channels = weights["patch_embedding.weight"].shape[:2]
            layers = 1 + max(int(name.split(".")[1]) for name in names if name.startswith("blocks."))
            model = {(1536, 30): "1.3b", (5120, 40): "14b"}.get((dim, layers), f"{dim} wide, {layers} layers")
            kind = "Lip Forcing student" if "audio_proj.proj.weight" in weights else "Wan 2.1 base model"
            return Kind(kind, f"{naming}{model}, {channels} channels")
    if "encoder.downsamples.0.residual.2.weight" in weights:
        return Kind("Wan VAE", f"{weights['encoder.conv1.weight'].shape[0]} channels")
    if "decoder.3.conv.0.weight" in weights:
        return Kind("TAEHV", f"{weights['decoder.1.weight'].shape[1]} latent channels")
    if any("feature_extractor.conv_layers.0.conv.weight" in name for name in names):
        return Kind("wav2vec 2.0")
    if "shared.weight" in weights or "token_embedding.weight" in weights:
        return Kind("text encoder (UMT5)")
    if len(weights) == 1 and next(iter(weights.values())).ndim in (2, 3):
        return Kind("text embedding", " x ".join(map(str, next(iter(weights.values())).shape)))
    return Kind("unknown", f"names such as {', '.join(sorted(names)[:3])}")


def _first(weights: Mapping[str, Tensor], part: str) -> Tensor:
    return next(x for name, x in weights.items() if part in name)


def describe(path: Path) -> dict[str, Any]:
    """What `lipstream inspect FILE` prints: `path`, `kind`, `size`, `tensors`, `parameters`, `bytes`, from headers."""
    weights = open_weights(path, shapes_only=True)
    kind = identify(weights)
    return {
        "path": str(path),
        "kind": kind.name,
        "size": kind.size,
        "tensors": len(weights),
        "parameters": sum(x.numel() for x in weights.values()),
        "bytes": sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())),
    }


def require_shapes(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise one CheckpointError that lists all names that are missing, unknown or of another shape."""
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {list(found[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if not missing and not unknown and not shapes:
        return
    parts = [
        f"{title}: {', '.join(names[:_LISTED])}" + f" and {len(names) - _LISTED} more" * (len(names) > _LISTED)
        for title, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    raise CheckpointError(
        f"{path} looks like: {identify(found)}\n  " + "\n  ".join(parts), expected=f"the weights of {what}"
    )
