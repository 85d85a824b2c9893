"""The causal student: one merged file, or base weights with adapters and training deltas on top."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lipstream.errors import CheckpointError
from torch import Tensor

from .. import STUDENTS, CausalDiT, StudentConfig
from ..dit import AudioPack
from ..layers import Conv3d, Linear
from .files import Weights, identify, open_weights, renamed, require_shapes

LORA_SCALE = 0.5
"""alpha / rank of the released adapters and of training: 64 / 128."""
_AUDIO = ("audio_proj.", "audio_cond_projs.")
_LORA = re.compile(r"(.*)\.lora_([AB])(\.default)?\.weight")

Adapters = dict[str, tuple[Tensor, Tensor]]
"""LoRA by layer: A [rank, in] and B [out, rank]; the layer's weight is ``W + 0.5 B A``."""

_DIFFUSERS = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),  # the norm with weights, that of cross-attention
)
"""Names of Wan 2.1 in diffusers, and upstream's."""


def load_student(
    paths: Sequence[Path], model: str, *, new_audio: bool = False, progress: Callable[[str], None] = lambda name: None
) -> CausalDiT:
    """A student from files, its adapters merged.

    The first is a merged student or a Wan 2.1 base model (16 input channels; the others start at zero); the rest are
    adapters or training deltas. Full tensors replace those before. LoRA is merged at the end, ``W + 0.5 B A``, in
    bfloat16 as upstream does; a training delta's A and B replace the adapter's, from which its training went on, as
    upstream loads it. Weights of matrix products are bfloat16, memory-mapped where unchanged; all others are float32.

    Args:
        model: "1.3b" or "14b" (or another of `STUDENTS`).
        new_audio: files without audio layers, as of Wan 2.1 itself, get new ones, which add nothing yet.

    Raises:
        CheckpointError: as `open_weights`; another size or model; weights missing, unknown or of another shape; two
            adapters for one layer.
    """
    weights, adapters = _read(paths, progress)
    for layer, (a, b) in adapters.items():
        name = f"{layer}.weight"
        weights[name] = weights[name].bfloat16() + LORA_SCALE * (b.bfloat16() @ a.bfloat16())
    return _student(weights, model, paths, new_audio)


def load_unmerged(paths: Sequence[Path], model: str, *, new_audio: bool = False) -> tuple[CausalDiT, Adapters]:
    """As `load_student`, with the adapters apart, to train them on."""
    weights, adapters = _read(paths)
    return _student(weights, model, paths, new_audio), adapters


def _untrained_audio(config: StudentConfig) -> Weights:
    """Audio layers with random features, whose projections into the blocks are zero."""
    pack = AudioPack(config).state_dict(prefix=_AUDIO[0])
    width = {"weight": (config.dim, config.audio_hidden), "bias": (config.dim,)}
    into = {f"{_AUDIO[1]}{i}.{x}": torch.zeros(width[x]) for i in range(len(config.audio_layers)) for x in width}
    return pack | into


def _read(paths: Sequence[Path], progress: Callable[[str], None] = lambda name: None) -> tuple[Weights, Adapters]:
    weights: Weights = {}
    adapters: Adapters = {}
    for path in paths:
        progress(path.name)
        _add(weights, adapters, _released_names(open_weights(path)), path)
    return weights, adapters


def _student(weights: Weights, model: str, paths: Sequence[Path], new_audio: bool) -> CausalDiT:
    config = STUDENTS[model]
    _check_size(weights, config, model, paths[0])
    if new_audio and not any(name.startswith(_AUDIO) for name in weights):
        weights |= _untrained_audio(config)
    with torch.device("meta"):
        student = CausalDiT(config)
    wanted = student.state_dict()
    patch = "patch_embedding.weight"
    if patch in weights and weights[patch].shape[1] < config.in_channels:
        weights[patch] = _widened(weights[patch], config.in_channels)
    require_shapes(paths[-1], weights, wanted, f"the {model} student")
    products = {
        f"{name}.{part}"
        for name, module in student.named_modules()
        if isinstance(module, Linear | Conv3d)
        for part in ("weight", "bias")
    }
    given = {name: x.to(torch.bfloat16 if name in products else torch.float32) for name, x in weights.items()}
    student.load_state_dict(given, assign=True)
    return student.eval().requires_grad_(False)


def _released_names(weights: Weights) -> Weights:
    if "blocks.0.scale_shift_table" not in weights:
        return weights
    return renamed(weights, _DIFFUSERS)


def _add(weights: Weights, adapters: Adapters, added: Weights, path: Path) -> None:
    """Put the tensors of the file `path` over `weights` and `adapters`."""
    pairs: dict[str, dict[str, Tensor]] = {}
    deltas = set()  # layers that have the names of a training state
    for name, x in added.items():
        if found := _LORA.fullmatch(name):
            pairs.setdefault(found[1], {})[found[2]] = x
            if found[3]:
                deltas.add(found[1])
            continue
        if name == "patch_embedding.weight" and name in weights and weights[name].shape[1] > x.shape[1]:
            x = _widened(x, weights[name].shape[1])
        weights[name] = x
        adapters.pop(name.removesuffix(".weight"), None)  # such a weight has the adapter merged
    for layer, pair in pairs.items():
        name = f"{layer}.weight"
        if name not in weights or {*pair} != {"A", "B"}:
            raise CheckpointError(
                f"{path} has LoRA for {name}, which nothing before it has",
                expected="base weights first, then adapters",
                fix="give the base model's file before this one",
            )
        a, b, shape = pair["A"], pair["B"], weights[name].shape
        if (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:
            raise CheckpointError(
                f"{path}: LoRA of {name} is {list(b.shape)} x {list(a.shape)}", expected=f"a product of {list(shape)}"
            )
        if layer in adapters and layer not in deltas:
            raise CheckpointError(
                f"{path} is a second adapter for {name}: whether it adds to the first or replaces it is not known",
                expected="one adapter, then training deltas (.lora_A.default.weight), which replace it",
                fix="leave one of them out",
            )
        adapters[layer] = a, b


def _widened(weight: Tensor, channels: int) -> Tensor:
    """A patch embedding for more input channels: the weights of the new ones are zero."""
    wide = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    wide[:, : weight.shape[1]] = weight
    return wide


def _check_size(weights: Weights, config: StudentConfig, model: str, path: Path) -> None:
    kind = identify(weights)
    if kind.name not in ("Lip Forcing student", "Wan 2.1 base model"):
        raise CheckpointError(f"{path} looks like: {kind}", expected=f"the weights of the {model} student")
    dim = weights["patch_embedding.weight"].shape[0]
    if dim != config.dim:
        raise CheckpointError(
            f"{path} looks like: {kind}", expected=f"the {model} student, {config.dim} wide", fix="another --model"
        )
