"""The causal student: one merged file, or base weights with adapters and training deltas on top."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lipstream.errors import CheckpointError
from torch import Tensor

from .. import STUDENTS, CausalDiT, StudentConfig
from ..layers import Conv3d, Linear
from .files import Weights, identify, open_weights, renamed, require_shapes

LORA_SCALE = 0.5
"""alpha / rank of the released adapters and of training: 64 / 128."""
_LORA = re.compile(r"(.*)\.lora_([AB])(?:\.default)?\.weight")

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
    paths: Sequence[Path], model: str, *, progress: Callable[[str], None] = lambda name: None
) -> CausalDiT:
    """A student from files, each applied on top of those before it.

    The first is a merged student or a Wan 2.1 base model (16 input channels; the others start at zero); the rest are
    adapters or training deltas: LoRA is merged, ``W + 0.5 B A``, in bfloat16 as upstream does; full tensors replace
    those before. Weights of matrix products are bfloat16, memory-mapped where unchanged; all others are float32.

    Args:
        model: "1.3b" or "14b" (or another of `STUDENTS`).

    Raises:
        CheckpointError: as `open_weights`; another size or model; weights missing, unknown or of another shape.
    """
    config = STUDENTS[model]
    weights: Weights = {}
    for path in paths:
        progress(path.name)
        weights |= _layer_over(weights, _released_names(open_weights(path)), path)
    _check_size(weights, config, model, paths[0])
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


def _layer_over(base: Weights, added: Weights, path: Path) -> Weights:
    """The weights of `base` that `added` changes: full tensors as they are, LoRA pairs merged."""
    pairs: dict[str, dict[str, Tensor]] = {}
    changed: Weights = {}
    for name, x in added.items():
        found = _LORA.fullmatch(name)
        if found:
            pairs.setdefault(f"{found[1]}.weight", {})[found[2]] = x
        elif name == "patch_embedding.weight" and name in base and base[name].shape[1] > x.shape[1]:
            changed[name] = _widened(x, base[name].shape[1])
        else:
            changed[name] = x
    for name, pair in pairs.items():
        weight = changed.get(name, base.get(name))
        if weight is None or {*pair} != {"A", "B"}:
            raise CheckpointError(
                f"{path} has LoRA for {name}, which nothing before it has",
                expected="base weights first, then adapters",
                fix="give the base model's file before this one",
            )
        a, b = pair["A"].bfloat16(), pair["B"].bfloat16()
        if b.shape[0] != weight.shape[0] or a.shape[1] != weight.shape[1] or a.shape[0] != b.shape[1]:
            shapes = f"{list(b.shape)} x {list(a.shape)}"
            raise CheckpointError(f"{path}: LoRA of {name} is {shapes}", expected=f"a product of {list(weight.shape)}")
        changed[name] = weight.bfloat16() + LORA_SCALE * (b @ a)
    return changed


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
