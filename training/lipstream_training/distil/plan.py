"""Estimate the resources of a run: memory of a rank, arithmetic, hours; counted on the meta device.

Weights are counted from the model with its adapters; activations and arithmetic from the shapes of a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from lipstream_models import STUDENTS, CausalDiT, StudentConfig
from torch import nn

from . import parallel
from .recipe import Recipe

LATENT_FRAMES = 21
GIB = 2**30
REACHED = 400e12
"""FLOP/s that a training step is taken to reach on an H100: an assumption, 40 % of its peak in bfloat16."""


@dataclass(frozen=True)
class Memory:
    """Memory of one rank in bytes.

    Attributes:
        weights: sharded, float32: of all networks. gradients, moments: of what is trained. gathered: one block and the
            root in the type of the products, twice, since the next block is gathered while one computes.
        kept: K and V that later chunks attend to. activations: saved for the backward pass, the larger of the student's
            and the critic's. work: temporary tensors of one block.
    """

    weights: float
    gradients: float
    moments: float
    gathered: float
    kept: float
    activations: float
    work: float

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))


def constructed(config: StudentConfig, recipe: Recipe, *, trained: bool) -> CausalDiT:
    """A network of a stage on the meta device, frozen or adapted as the stage does it."""
    with torch.device("meta"):
        model = CausalDiT(config)
        if trained and recipe.lora:
            parallel.adapt(model, recipe.lora, recipe.lora_alpha)
    return model.requires_grad_(False) if not trained else model


def count(module: nn.Module, *, trained: bool | None = None) -> int:
    """Number of parameters of `module`; with `trained`, only of those that are trained (True) or frozen (False)."""
    return sum(p.numel() for p in module.parameters() if trained is None or p.requires_grad is trained)


def memory(recipe: Recipe, gpus: int, *, critic: str | None = None) -> Memory:
    """Memory of one of `gpus` ranks in a stage-2 step, one clip on each.

    Args:
        critic: size of the fake score, if it is not the student's. The teacher is 14b.
    """
    config, fake, teacher = (STUDENTS[name] for name in (recipe.student, critic or recipe.student, "14b"))
    counts = [_counts(config, recipe, True), _counts(fake, recipe, True), _counts(teacher, recipe, False)]
    trained = sum(one.trained for one in counts)
    width = 2 if recipe.precision == "bf16" else 4
    gathered = max(one.gathered for one in counts) * width
    rows = config.tokens * config.chunk_frames
    chunks = LATENT_FRAMES // config.chunk_frames
    kept = 2 * config.num_layers * chunks * rows * config.dim * width * recipe.batch
    through = max(c.num_layers * c.tokens * LATENT_FRAMES * c.dim for c in (config, fake))
    if not recipe.checkpointing:
        through *= 24  # about as many tensors of a block's width are saved for its backward pass
    largest = max((config, fake, teacher), key=lambda c: c.dim)
    work = largest.tokens * LATENT_FRAMES * (largest.ffn_dim * 2 + largest.dim * 12) * width * recipe.batch
    return Memory(
        weights=sum(one.all for one in counts) * 4 / gpus,
        gradients=trained * 4 / gpus,
        moments=trained * 8 / gpus,
        gathered=gathered,
        kept=kept,
        activations=through * width * recipe.batch,
        work=work,
    )


@dataclass(frozen=True)
class _Counts:
    """Numbers of parameters of a network: all, those trained, and those gathered at once."""

    all: int
    trained: int
    gathered: int


def _counts(config: StudentConfig, recipe: Recipe, trained: bool) -> _Counts:
    key = (config, recipe.lora, trained)
    if key not in _counted:
        net = constructed(config, recipe, trained=trained)
        blocks = [count(block) for block in net.blocks]
        gathered = 2 * max(blocks) + count(net) - sum(blocks)
        _counted[key] = _Counts(count(net), count(net, trained=True), gathered)
    return _counted[key]


_counted: dict[tuple[StudentConfig, int, bool], _Counts] = {}


def flops(config: StudentConfig, frames: int, keys: int) -> float:
    """Operations of one forward pass of `frames` latent frames, each token attending to `keys` latent frames."""
    rows = frames * config.tokens
    products = 8 * config.dim**2 + 2 * config.dim * config.ffn_dim  # q, k, v, o twice but for the prompt's k and v
    products -= 2 * config.dim**2
    attention = 2 * config.dim * (keys * config.tokens + config.text_len)
    return 2.0 * config.num_layers * rows * (products + attention)


def step_flops(recipe: Recipe, *, critic: str | None = None) -> dict[str, float]:
    """Operations for one clip: a critic's and a student's part of a stage-2 iteration, on average over exit steps.

    A backward pass takes twice a forward pass, with checkpointing three times.
    """
    student, fake, teacher = STUDENTS[recipe.student], STUDENTS[critic or recipe.student], STUDENTS["14b"]
    chunks, c = LATENT_FRAMES // student.chunk_frames, student.chunk_frames
    seen = [c, 2 * c, *[student.window] * (chunks - 2)]
    one_pass = sum(flops(student, c, keys) for keys in seen)
    steps = len(student.t_list) - 1
    passes = (steps + 1) / 2 + 1  # of exit steps 1 to `steps` on average, and the context pass
    back = 3 if recipe.checkpointing else 2
    score = flops(fake, LATENT_FRAMES, LATENT_FRAMES)
    return {
        "critic": passes * one_pass + (1 + back) * score,
        "student": (passes + back) * one_pass + score + 2 * flops(teacher, LATENT_FRAMES, LATENT_FRAMES),
    }


def hours(recipe: Recipe, gpus: int, *, critic: str | None = None) -> float:
    """Hours of the whole stage on `gpus` H100, at `REACHED`."""
    each = step_flops(recipe, critic=critic)
    clips = recipe.iterations * recipe.batch * recipe.accumulate
    total = clips * (each["critic"] + each["student"] / recipe.update_ratio)
    return total / REACHED / 3600  # clips of each rank: ranks work in parallel


def table(student: str) -> list[dict[str, Any]]:
    """Rows of the table: GPUs, memory of a rank in GiB by kind, hours, GPU hours; effective batch 16 or 64."""
    effective, critic = (16, None) if student == "14b" else (64, None)
    recipe = replace(Recipe(student=student, lora=128 if student == "14b" else 0), batch=1)
    rows = []
    for gpus in (4, 8, 16, 32, 64):
        shared = replace(recipe, accumulate=max(1, effective // gpus))
        parts = memory(shared, gpus, critic=critic)
        time = hours(shared, gpus, critic=critic)
        rows.append(
            {
                "gpus": gpus,
                "accumulate": shared.accumulate,
                **{name: round(value / GIB, 1) for name, value in vars(parts).items()},
                "total": round(parts.total / GIB, 1),
                "hours": round(time, 1),
                "gpu_hours": round(time * gpus),
            }
        )
    return rows


def markdown(student: str) -> str:
    """`table` as Markdown, as in docs/distillation.md."""
    rows = table(student)
    heading = ["GPUs", "accumulate", "weights", "gradients", "moments", "gathered", "K and V", "activations", "work"]
    heading += ["**GiB a rank**", "hours", "GPU hours"]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    lines += [f"| {' | '.join(str(value) for value in row.values())} |" for row in rows]
    return "\n".join(lines)
