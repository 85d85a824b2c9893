"""TensorRT plans in a bundle: what they were built with, and whether they run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PlanError
from ..gpu import Gpu


@dataclass(frozen=True)
class Plans:
    """What the manifest says about a bundle's plans.

    Attributes:
        recipe: its name. options: all it says.
        ring: "native" or "function": how the ring is lowered, and so which shape it has (docs/engines.md).
        tensorrt: version of TensorRT that built them. version_compatible: whether later ones of that major run them.
        cuda: newest CUDA that the building driver ran, None without one. gpu: what they were built on, None if nothing.
        source: SHA-256 over the files of the bundle that they were built from.
        graphs: per graph what is known of its plan: `seconds` of building, and with a GPU its layers.
        verified: what `lipstream verify` found last; None before.
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
    verified: dict[str, Any] | None = None

    def check(self) -> None:
        """ValueError, which says what is wrong, where the values cannot be."""
        texts = (self.recipe, self.tensorrt, self.source, self.ring)
        if not all(isinstance(text, str) for text in texts) or self.ring not in ("native", "function"):
            raise ValueError(f"plans of {texts!r}")
        if not isinstance(self.options, dict) or not isinstance(self.graphs, dict):
            raise ValueError("plans without options or graphs")
        if self.gpu is not None:
            Gpu(**self.gpu)
        if self.verified is not None and not isinstance(self.verified, Mapping):
            raise ValueError(f"plans verified by {self.verified!r}")


def require_runnable(plans: Plans, where: object, *, tensorrt: str, gpu: Gpu) -> None:
    """Raise PlanError, which names both sides, unless these plans run with this TensorRT on this GPU.

    A plan runs with the very TensorRT that built it (later ones of its major version, if it was built to be
    compatible), and on the compute capability that it was built for.
    """
    again = f"lipstream build BUNDLE --recipe {plans.recipe} -o {where}"
    same_major = tensorrt.split(".")[0] == plans.tensorrt.split(".")[0]
    later = _numbers(tensorrt) >= _numbers(plans.tensorrt)
    if tensorrt != plans.tensorrt and not (plans.version_compatible and same_major and later):
        raise PlanError(
            f"the plans of {where} were built with TensorRT {plans.tensorrt}, and here is TensorRT {tensorrt}",
            expected=f"TensorRT {plans.tensorrt}" + (" or later of that major version" * plans.version_compatible),
            fix=f"{again}, or pip install tensorrt-cu13=={plans.tensorrt}",
        )
    built = plans.gpu and plans.gpu["compute_capability"]
    if built != gpu.compute_capability:
        on = f"for {plans.gpu['name']} (compute capability {built})" if plans.gpu else "without a GPU, to check them"
        raise PlanError(
            f"the plans of {where} were built {on}, and here is {gpu.name} (compute capability "
            f"{gpu.compute_capability})",
            expected="plans built on the kind of GPU that runs them",
            fix=again,
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
