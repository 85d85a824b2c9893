"""Recipes: how engines are built, as TOML files in `engines/recipes` or given by the user."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lipstream.errors import ConfigError
from lipstream.precision import PRECISIONS

from .lower_conv import Convolutions
from .lower_ring import Attends, Lowering

_PACKAGE = Path(__file__).parent
FOLDER = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "recipes"
"""Next to the package in a checkout, inside it when installed."""


@dataclass(frozen=True)
class Recipe:
    """What makes one build differ from another.

    Attributes:
        name: of the file. description: one line.
        precision: that the bundle's graphs must have: "bf16", "fp8", "fp32".
        ring: "native", "plugin" or "function": see `lower_ring`.
        attends: how the attention of a ring in place is limited to the attended frames: "length" or "mask" (see
            `lower_ring`), or "auto": the first of them whose engine is right on the GPU that builds it.
        conv3d: how 3-D convolutions are built: "3d", as they are, or "2d", see `lower_conv`.
        optimization_level: of TensorRT's builder, 0 (fast to build) to 5 (searches longest).
        workspace_gib: scratch memory that a kernel may ask for, 0 for all the GPU has.
        version_compatible: plans that later TensorRT versions of this major load, at some loss of speed.
        weight_streaming: weights may stay in host memory and be copied when needed: for a GPU that cannot hold them.
    """

    name: str
    description: str
    precision: str
    ring: Lowering = "native"
    attends: Literal["auto", "length", "mask"] = "auto"
    conv3d: Convolutions = "3d"
    optimization_level: int = 3
    workspace_gib: float = 0.0
    version_compatible: bool = False
    weight_streaming: bool = False

    def __post_init__(self) -> None:
        def refuse(field: str, expected: str) -> None:
            raise ConfigError(f"recipe {self.name}: {field} = {getattr(self, field)!r}", expected=expected)

        if self.precision not in PRECISIONS:
            refuse("precision", f"one of: {', '.join(PRECISIONS)}")
        if self.ring not in get_args(Lowering):
            refuse("ring", f"one of: {', '.join(get_args(Lowering))}")
        if self.attends not in ("auto", *get_args(Attends)):
            refuse("attends", f"one of: auto, {', '.join(get_args(Attends))}")
        if self.conv3d not in get_args(Convolutions):
            refuse("conv3d", f"one of: {', '.join(get_args(Convolutions))}")
        if type(self.optimization_level) is not int or not 0 <= self.optimization_level <= 5:
            refuse("optimization_level", "a whole number from 0 to 5")
        if isinstance(self.workspace_gib, bool) or not isinstance(self.workspace_gib, int | float):
            refuse("workspace_gib", "a number of GiB, 0 for all")
        if not 0 <= self.workspace_gib < 1 << 20:
            refuse("workspace_gib", "a number of GiB, 0 for all")
        for field in ("version_compatible", "weight_streaming"):
            if not isinstance(getattr(self, field), bool):
                refuse(field, "true or false")

    def options(self) -> dict[str, Any]:
        """All fields that affect the plan: without name and description."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "description")}


def recipes() -> dict[str, Path]:
    """The shipped recipes, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def load_recipe(recipe: str) -> Recipe:
    """A shipped recipe by name, or a TOML file by path.

    Raises:
        ConfigError: no such recipe, or one that says something impossible.
    """
    path = recipes().get(recipe, Path(recipe))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        expected = f"the path of a TOML file, or one of: {', '.join(recipes())}"
        raise ConfigError(f"no recipe {recipe!r}: {error}", expected=expected) from error
    known = {field.name for field in fields(Recipe)} - {"name"}
    if unknown := sorted({*values} - known):
        raise ConfigError(f"recipe {path.stem} sets {', '.join(unknown)}", expected=f"of: {', '.join(sorted(known))}")
    if missing := sorted({"description", "precision"} - {*values}):
        raise ConfigError(f"recipe {path.stem} does not say its {' and '.join(missing)}")
    return Recipe(path.stem, **values)
