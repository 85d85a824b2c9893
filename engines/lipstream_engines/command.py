"""Implement `lipstream build`, `lipstream verify` and `lipstream inspect --layers`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from lipstream.bundle import Bundle
from lipstream.errors import ConfigError, EngineBuildError
from tqdm import tqdm

from .build import build_plans, parse, require_precision, require_usable_driver, write_plans
from .cache import PlanCache, default_folder
from .recipe import Recipe, load_recipe, recipes
from .runner import layer_information, require_gpu_for, summarise
from .trt import tensorrt
from .verify import verify as verify_bundle


def build(
    bundle: str, recipe_name: str, out: Path, *, cache: Path | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Build every graph of `bundle` and write the plans to the bundle `out`; plans in the cache are reused.

    Returns:
        `bundle`, `recipe`, `tensorrt`, `cache`, and per graph its `key`, `hit`, `seconds` and `bytes`.

    Raises:
        BackendError: the driver is too old.
        ConfigError, MissingExtraError, EngineBuildError, OutputError, and those of `Bundle.load`.
    """
    recipe, source = load_recipe(recipe_name), Bundle.load(bundle)
    require_usable_driver()
    version = tensorrt().__version__
    plan_cache = PlanCache(cache or default_folder())
    with _Bar(quiet) as bar:
        built = build_plans(source, recipe, plan_cache, bar.step)
    written = write_plans(source, recipe, built, out)
    return {
        "bundle": str(written.path),
        "recipe": recipe.name,
        "tensorrt": version,
        "gpu": written.manifest.plans and written.manifest.plans.gpu,
        "cache": str(plan_cache.folder),
        "plans": {plan.graph: {**asdict(plan), "path": str(written.path / f"{plan.graph}.plan")} for plan in built},
    }


def describe_build(result: dict[str, Any]) -> str:
    """The result of `build` as text."""
    gpu = result["gpu"]["name"] if result["gpu"] else "no GPU (to check the graphs; such plans do not run)"
    lines = [f"{result['bundle']}: recipe {result['recipe']}, TensorRT {result['tensorrt']}, {gpu}"]
    for name, plan in result["plans"].items():
        how = "from the cache" if plan["hit"] else f"built in {plan['seconds']:.1f} s"
        lines.append(f"  {plan['bytes'] / 1e6:>9.1f} MB {name}, {how}")
        if attention := plan["attention"]:
            checked = "checked on this GPU" if attention["checked"] else "not checked"
            lines.append(f"{'':13}its attention is limited by a {attention['attends']}, {checked}")
    return "\n".join(lines)


def dry_run(bundle: str, recipe_name: str) -> dict[str, Any]:
    """Parse every graph as `build` would and build nothing.

    Returns:
        Per graph its number of `layers` by kind.

    Raises:
        EngineBuildError: names the nodes that TensorRT's parser does not support. Also those of `build`.
    """
    recipe, source = load_recipe(recipe_name), Bundle.load(bundle)
    require_usable_driver()
    require_precision(source, recipe)
    found: dict[str, Any] = {}
    failed: list[str] = []
    for graph in sorted(source.manifest.graphs):
        parsed = parse(source, graph, recipe)
        found[graph] = {"layers": parsed.layers()}
        failed += [f"{graph}: {error}" for error in parsed.errors]
    if failed:
        raise EngineBuildError(
            f"TensorRT {tensorrt().__version__} cannot parse:\n  " + "\n  ".join(failed),
            expected="operators that its parser knows",
            fix="another ring in the recipe, or TensorRT 11.1 or later",
        )
    return {"bundle": str(source.path), "recipe": recipe.name, "tensorrt": tensorrt().__version__, "graphs": found}


def describe_dry_run(result: dict[str, Any]) -> str:
    lines = [f"{result['bundle']}: TensorRT {result['tensorrt']} supports every node (nothing was built)"]
    for name, graph in result["graphs"].items():
        layers = graph["layers"]
        attention = layers.get("attention_input", 0)
        lines.append(f"  {sum(layers.values()):>6} layers {name}" + f", {attention} attentions" * bool(attention))
    return "\n".join(lines)


def verify(bundle: str, *, quiet: bool = False) -> dict[str, Any]:
    """Compare the engines of `bundle` with the reference in it, on this machine's GPU. Raises as `verify.verify`."""
    source = Bundle.load(bundle)
    if source.manifest.plans is None:
        raise ConfigError(f"{source.path} holds no plans", fix="lipstream build --help")
    require_gpu_for(source)
    with tqdm(total=len(source.manifest.graphs), desc="verify", unit="engine", disable=quiet or None) as bar:

        def progress(graph: str) -> None:
            bar.set_postfix_str(graph)
            bar.update()

        found = verify_bundle(source, progress=progress)
    return {"bundle": str(source.path), **found}


def describe_verify(result: dict[str, Any]) -> str:
    worst = sorted(result["errors"], key=lambda name: -result["errors"][name] / result["allowed"][name])[:5]
    lines = [f"{result['bundle']}: every output is within its error bound; the largest relative to theirs:"]
    lines += [f"  {result['errors'][name]:.1e} of {result['allowed'][name]:.1e} allowed, {name}" for name in worst]
    return "\n".join(lines)


def layers(bundle: Bundle) -> dict[str, Any]:
    """Summary of TensorRT's engine inspector, by graph. Raises as `require_gpu_for`."""
    require_gpu_for(bundle)
    return {name: summarise(layer_information(bundle.file(f"{name}.plan"))) for name in sorted(bundle.manifest.graphs)}


def list_recipes() -> list[Recipe]:
    return [load_recipe(name) for name in recipes()]


class _Bar:
    """A progress bar on standard error: the phase of TensorRT's build and its steps."""

    def __init__(self, quiet: bool) -> None:
        self._bar = tqdm(desc="build", disable=quiet or None, bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed}]")

    def __enter__(self) -> _Bar:
        return self

    def step(self, graph: str, phase: str, step: int, steps: int) -> None:
        self._bar.set_description_str(f"{graph}: {phase[:40]}", refresh=False)
        self._bar.total, self._bar.n = max(steps, 1), min(step, max(steps, 1))
        self._bar.refresh()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
