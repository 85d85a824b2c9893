"""Choose how the ring's attention is limited to the attended frames, by running the engine on the GPU that builds it.

TensorRT's attention takes a run-time length, but reports say that some kernels read beyond it. An engine that does
gives wrong numbers in a stream's first two chunks, whose first frame is attended for good. The alternative is a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lipstream.bundle import Bundle
from lipstream.bundle.golden import REFERENCE, Reference
from lipstream.errors import VerificationError

from .lower_ring import Attends
from .recipe import Recipe
from .runner import PolygraphyRunner, Runner
from .verify import Scales, graph_errors


@dataclass(frozen=True)
class Choice:
    """Attributes: attends: the form. checked: whether its engine was run. refused: outputs that were off, by form."""

    attends: Attends
    checked: bool
    refused: dict[str, list[str]]


def choose(
    bundle: Bundle,
    recipe: Recipe,
    build: Callable[[Attends], Path],
    *,
    runs_here: bool,
    scales: Scales | None = None,
    open_runner: Callable[[Path], Runner] = PolygraphyRunner,
) -> Choice:
    """Build the denoiser in the recipe's form, or in the first form whose engine is right.

    Args:
        bundle: of ONNX graphs. build: builds the denoiser in a form; returns the plan's path.
        runs_here: whether there is a GPU to run it; without one, and without a reference in the bundle, nothing is
            checked, and "auto" is "length". scales: of the ring, if the recipe's is in FP8.

    Raises:
        VerificationError: no form gives the right numbers. And what `build` raises.
    """
    if recipe.attends != "auto":
        build(recipe.attends)
        return Choice(recipe.attends, False, {})
    first, *_ = forms = get_args(Attends)
    if not runs_here or REFERENCE not in bundle.manifest.files:
        build(first)
        return Choice(first, False, {})
    reference = Reference.load(bundle.file(REFERENCE))
    refused: dict[str, list[str]] = {}
    for form in forms:
        errors = graph_errors(bundle, reference, "denoiser", open_runner(build(form)), in_place=True, scales=scales)
        if not (off := reference.off(errors)):
            return Choice(form, True, refused)
        refused[form] = off
    raise VerificationError(
        f"the denoiser's engine gives wrong numbers on this GPU, whether a length or a mask limits its attention: "
        f"{', '.join(refused[first][:5])}",
        expected="outputs within the error of the precision",
        fix='ring = "function" in the recipe, and report it: it is a bug',
    )
