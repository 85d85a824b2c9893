"""Measures the error of each linear layer in FP8: each alone is set to FP8, and the velocities are compared.

Rounding errors of different layers are independent, so their squares add up. The layers with the largest squared error
per operation stay in BF16, until the sum of the others is within a budget.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from lipstream.backends.base import Array
from lipstream_models import CausalDiT, RingGeometry
from lipstream_models.parts import StudentParts
from torch import Tensor

from ..progress import Progress, unseen
from ..torch_backend import TorchBackend
from .calibration import Passes
from .fp8 import FP8Linear, linear_layers
from .products import products_in_float32

BUDGET = 0.02
"""Relative error of the velocity that FP8 may add: about the error of the model wholly in bfloat16, as upstream
(docs/precision.md)."""


@dataclass(frozen=True)
class Sensitivity:
    """Errors of FP8.

    Attributes:
        layers: for each linear layer, as the only one in FP8, the relative error of the velocities; sorted by squared
            error per operation, the largest first.
        largest: for each layer, the largest input.
        budget: relative error that all FP8 layers together may add. kept: the layers that stay in BF16 for that.
    """

    layers: dict[str, float]
    largest: dict[str, float]
    budget: float

    @property
    def kept(self) -> list[str]:
        names = list(self.layers)
        for count in range(len(names) + 1):
            if math.hypot(*(self.layers[name] for name in names[count:])) <= self.budget:
                return names[:count]
        return names

    @property
    def quantised(self) -> dict[str, float]:
        """The layers that become FP8, and the largest input of each."""
        kept = {*self.kept}
        return {name: self.largest[name] for name in self.layers if name not in kept}

    def predicted(self) -> float:
        """Relative error of the velocities with `quantised` in FP8, if the layers' errors are independent."""
        return math.hypot(*(self.layers[name] for name in self.quantised))

    def report(self) -> dict[str, Any]:
        """The errors for JSON."""
        return {**asdict(self), "kept": self.kept, "predicted": self.predicted()}


def measure_sensitivity(
    parts: StudentParts,
    passes: Passes,
    largest: dict[str, float],
    *,
    budget: float = BUDGET,
    progress: Progress = unseen,
) -> Sensitivity:
    """Make the layers that `largest` names FP8, one at a time, and play `passes`; `parts` are those of BF16.

    Only the first chunks are played, until the window is full: the error hardly depends on the chunk, and each layer
    costs all of them. Blocks before the layer's own give what they give in BF16, and are computed once.
    """
    assert parts.student
    config = parts.config
    passes = passes.first(len(RingGeometry(config.window, config.sink, config.chunk_frames).phases))
    student = copy.deepcopy(parts.student)
    layers = linear_layers(student)
    backend = TorchBackend(replace(parts, student=student))
    errors: dict[str, float] = {}
    with products_in_float32(student):
        expected = passes.play(backend.open_steps())
        for number in range(config.num_layers):
            if number:
                _freeze(student, number - 1, lambda: passes.play(backend.open_steps()))
            for name in [name for name in largest if name.startswith(f"blocks.{number}.")]:
                progress("sensitivity", len(errors), len(largest), name)
                parent, _, child = name.rpartition(".")
                setattr(student.get_submodule(parent), child, FP8Linear(layers[name], largest[name]))
                errors[name] = velocity_error(passes.play(backend.open_steps()), expected)
                setattr(student.get_submodule(parent), child, layers[name])
    ordered = dict(sorted(errors.items(), key=lambda item: -(item[1] ** 2) / layers[item[0]].weight.numel()))
    return Sensitivity(ordered, largest, budget)


def _freeze(student: CausalDiT, number: int, play: Callable[[], object]) -> None:
    """Let block `number` repeat the outputs of one `play`; the blocks before it are frozen already and do nothing.

    No block after them depends on anything else of theirs: each has K and V of its own.
    """
    before, block, after = student.layers[:number], student.layers[number], student.layers[number + 1 :]
    outputs: list[Tensor] = []
    hook = block.register_forward_hook(lambda block, inputs, output: outputs.append(output))
    for other in after:
        other.forward = _pass_on  # type: ignore[method-assign, assignment]
    play()
    hook.remove()
    for other in after:
        del other.forward
    for other in before:
        other.forward = _pass_on  # type: ignore[method-assign, assignment]
    repeated = cycle(outputs)
    block.forward = lambda *inputs: next(repeated)  # type: ignore[method-assign]


def _pass_on(x: Tensor, *others: object) -> Tensor:
    return x


def velocity_error(found: list[Array], expected: list[Array]) -> float:
    """Relative error over all passes: norm of the differences over norm of `expected`, in float64."""
    difference = sum(float(np.sum((a.astype(np.float64) - b) ** 2)) for a, b in zip(found, expected, strict=True))
    return math.sqrt(difference / sum(float(np.sum(b.astype(np.float64) ** 2)) for b in expected))
