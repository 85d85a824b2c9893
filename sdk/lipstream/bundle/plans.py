"""TensorRT plans in a bundle: how they were built, and whether they run on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PlanError
from ..gpu import Gpu

RINGS = ("native", "plugin", "function")


@dataclass(frozen=True)
class Plans:
    """The manifest's section on TensorRT plans.

    Attributes:
        recipe: name of the recipe. options: its contents.
        ring: one of `RINGS`: how the ring is lowered, which decides its layout (docs/engines.md).
        tensorrt: version of TensorRT that built them. version_compatible: whether later ones of that major run them.
        cuda: newest CUDA of the driver at the build, None without one. gpu: GPU of the build, None without one.
        source: SHA-256 over the files of the bundle that they were built from.
        graphs: for each graph the `key` in the cache and `seconds` of its build; for one that writes its ring in
            place, how its `attention` is limited to the attended frames, and whether that was checked.
        scales: of a ring in FP8, for each layer those of K and V: a code c stands for c times the scale. None for a
            ring in the type of the products.
        verified: the last result of `lipstream verify`; None before.
    """

    recipe: str
    options: dict[str, Any]
    ring: str
    tensorrt: str
    version_compatible: bool
    cuda: str | None
    gpu: dict[str, Any] | None
    source: str
    graphs: dict[str, Any]
    scales: list[list[float]] | None = None
    verified: dict[str, Any] | None = None

    @property
    def in_place(self) -> bool:
        """Whether passes write the rings that they read, which are [1, H, window T, D]."""
        return self.ring != "function"

    def check(self) -> None:
        """Raise ValueError, which says what is wrong, for invalid values."""
        texts = (self.recipe, self.tensorrt, self.source, self.ring)
        if not all(isinstance(text, str) for text in texts) or self.ring not in RINGS:
            raise ValueError(f"plans of {texts!r}")
        if not isinstance(self.options, dict) or not isinstance(self.graphs, dict):
            raise ValueError("plans without options or graphs")
        if self.scales is not None and not (isinstance(self.scales, list) and all(map(_are_scales, self.scales))):
            raise ValueError(f"plans with scales {self.scales!r}")
        if self.gpu is not None:
            Gpu(**self.gpu)
        if self.verified is not None and not isinstance(self.verified, Mapping):
            raise ValueError(f"plans verified by {self.verified!r}")


def _are_scales(pair: Any) -> bool:
    numbers = isinstance(pair, list) and len(pair) == 2 and all(type(scale) is float for scale in pair)
    return numbers and all(0 < scale < math.inf for scale in pair)


def require_scales(plans: Plans, where: object, *, layers: int, fp8: bool) -> None:
    """Raise PlanError, which states found and expected, unless the plans say the scales of this ring.

    Args:
        layers: of the ring. fp8: whether the engine of the denoiser has it in FP8.
    """
    found = None if plans.scales is None else len(plans.scales)
    expected = layers if fp8 else None
    if found != expected:
        raise PlanError(
            f"the denoiser of {where} has a ring {'in FP8' if fp8 else 'of 16 or 32 bits'}, and its manifest scales of "
            f"{found or 'no'} layers",
            expected=f"scales of {expected or 'no'} layers",
            fix=f"lipstream build BUNDLE --recipe {plans.recipe} -o {where}",
        )


def require_runnable(plans: Plans, where: object, *, tensorrt: str, gpu: Gpu) -> None:
    """Raise PlanError, which states found and expected, unless these plans run with this TensorRT on this GPU.

    A plan runs with the version of TensorRT that built it (if built version-compatible, also with later ones of the
    same major version), and on the compute capability that it was built for.
    """
    again = f"lipstream build BUNDLE --recipe {plans.recipe} -o {where}"
    same_major = tensorrt.split(".")[0] == plans.tensorrt.split(".")[0]
    later = _numbers(tensorrt) >= _numbers(plans.tensorrt)
    if tensorrt != plans.tensorrt and not (plans.version_compatible and same_major and later):
        raise PlanError(
            f"the plans of {where} were built with TensorRT {plans.tensorrt}, this is TensorRT {tensorrt}",
            expected=f"TensorRT {plans.tensorrt}" + (" or later of that major version" * plans.version_compatible),
            fix=f"{again}, or pip install tensorrt-cu13=={plans.tensorrt}",
        )
    built = plans.gpu and plans.gpu["compute_capability"]
    if built != gpu.compute_capability:
        on = f"for {plans.gpu['name']} (compute capability {built})" if plans.gpu else "without a GPU, to check them"
        raise PlanError(
            f"the plans of {where} were built {on}, this GPU is {gpu.name} (compute capability "
            f"{gpu.compute_capability})",
            expected="plans built on the kind of GPU that runs them",
            fix=again,
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
