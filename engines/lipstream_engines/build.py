"""Build a bundle of TensorRT plans from a bundle of ONNX graphs."""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lipstream.bundle import CONSTANTS, Bundle, Geometry, writing
from lipstream.bundle.golden import REFERENCE
from lipstream.bundle.plans import Plans
from lipstream.errors import ConfigError, OutputError
from lipstream.gpu import Driver, NoDriverError, driver, require_tensorrt_driver
from lipstream.plugin import NAMESPACE, fingerprint
from onnx import ModelProto

from . import lower_attention as attention
from . import lower_conv as conv
from . import lower_ring as ring
from .attends import Choice, choose
from .cache import PlanCache, key_of
from .lower_attention import lower_attention
from .lower_conv import lower_conv
from .lower_ring import Attends, load_graph, lower_ring, phases, ring_scales
from .recipe import Recipe
from .trt import Parsed, Profile, tensorrt

_LOWERING = [str(module.__file__) for module in (ring, attention, conv)]
Progress = Callable[[str, str, int, int], None]
"""(graph, phase, step, steps)"""


@dataclass(frozen=True)
class Built:
    """One plan.

    Attributes:
        hit: whether it came from the cache. seconds: duration of its build.
        attention: for a graph that writes its ring in place, how it is limited to the attended frames.
    """

    graph: str
    path: Path
    key: str
    hit: bool
    seconds: float
    bytes: int
    attention: Choice | None = None


def require_usable_driver() -> None:
    """Raise BackendError for a driver that TensorRT does not run on. Without any, graphs can still be checked."""
    if found := _driver():
        require_tensorrt_driver(found, "lipstream build")


def require_precision(bundle: Bundle, recipe: Recipe) -> None:
    """Raise ConfigError unless the bundle's graphs are of the recipe's precision, and ONNX."""
    if bundle.manifest.plans:
        raise ConfigError(f"{bundle.path} holds plans already", expected="a bundle that lipstream export wrote")
    if bundle.manifest.precision != recipe.precision:
        raise ConfigError(
            f"{bundle.path} is in {bundle.manifest.precision}, and recipe {recipe.name} builds {recipe.precision}",
            expected=f"a bundle exported in {recipe.precision}",
            fix=f"lipstream export SOURCE --precision {recipe.precision} -o BUNDLE",
        )


def parse(bundle: Bundle, graph: str, recipe: Recipe) -> Parsed:
    """Lower the graph and parse it with TensorRT; `errors` of the result lists what the parser does not support."""
    path = bundle.file(f"{graph}.onnx")
    attends: Attends = "mask" if recipe.attends == "mask" else "length"
    model = lower_attention(lower_ring(load_graph(path), bundle.manifest.geometry, recipe.ring, attends))
    if recipe.conv3d == "2d":
        model = lower_conv(model)
    return Parsed(model.SerializeToString(), path, plugin=_has_plugin(model))


def _has_plugin(model: ModelProto) -> bool:
    return any(node.domain == NAMESPACE for node in model.graph.node)


def profiles(graph: str, geometry: Geometry, recipe: Recipe) -> list[Profile]:
    """One profile for each number of attended frames, if the ring's length varies."""
    g = geometry
    if graph != "denoiser" or recipe.ring != "function":
        return []
    layers = range(g.num_layers)
    shape = (g.tokens, g.num_heads, g.head_dim)
    return [{f"{kind}.{i}": (count, *shape) for kind in "kv" for i in layers} for count in phases(g)]


def facts(bundle: Bundle, graph: str, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides what the plan of a graph is."""
    gpu = _gpu()
    return {
        "graph": bundle.manifest.files[f"{graph}.onnx"]["sha256"],
        "weights": {name: f["sha256"] for name, f in bundle.manifest.files.items() if name.endswith(".bin")},
        "recipe": recipe.options(),
        "plugin": fingerprint() if recipe.ring == "plugin" and graph == "denoiser" else None,
        "lowering": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in _LOWERING],
        "tensorrt": tensorrt().__version__,
        "cuda": gpu["cuda"],
        "gpu": gpu["gpu"],
    }


def _driver() -> Driver | None:
    try:
        return driver()
    except NoDriverError:
        return None


def _gpu() -> dict[str, Any]:
    """The first GPU, for which plans are built; empty on a machine that only checks graphs."""
    found = _driver()
    if found is None:
        return {"cuda": None, "gpu": None}
    return {"cuda": found.cuda, "gpu": found.gpus[0].dump() if found.gpus else None}


def build_plans(bundle: Bundle, recipe: Recipe, cache: PlanCache, progress: Progress) -> list[Built]:
    """Return the plan of every graph, from the cache or built now.

    On a machine with a GPU the denoiser's engine is run, to choose how its attention is limited (`choose`).

    A build runs in a separate thread, so that the main thread receives Ctrl-C and SIGTERM; they cancel the build, and
    the function waits until it has stopped.

    Raises:
        BackendError, ConfigError, EngineBuildError, MissingExtraError, OutputError, VerificationError.
    """
    require_precision(bundle, recipe)
    done = []
    for graph in sorted(bundle.manifest.graphs):
        if graph == "denoiser" and recipe.ring != "function":
            done.append(_build_in_place(bundle, graph, recipe, cache, progress))
        else:
            done.append(_build(bundle, graph, recipe, cache, progress))
    return done


def _build_in_place(bundle: Bundle, graph: str, recipe: Recipe, cache: PlanCache, progress: Progress) -> Built:
    built: dict[Attends, Built] = {}

    def build(attends: Attends) -> Path:
        built[attends] = _build(bundle, graph, replace(recipe, attends=attends), cache, progress)
        return built[attends].path

    scales = _scales(bundle, recipe)
    choice = choose(bundle, recipe, build, runs_here=_gpu()["gpu"] is not None, scales=scales)
    return replace(built[choice.attends], attention=choice)


def _scales(bundle: Bundle, recipe: Recipe) -> list[list[float]] | None:
    """The scales of the ring's K and V in each layer, None if it is not in FP8."""
    if "denoiser" not in bundle.manifest.graphs:
        return None
    found = ring_scales(load_graph(bundle.file("denoiser.onnx")), bundle.manifest.geometry, recipe.ring)
    return [list(pair) for pair in found] if found else None


def _build(bundle: Bundle, graph: str, recipe: Recipe, cache: PlanCache, progress: Progress) -> Built:
    known = facts(bundle, graph, recipe)
    timing = f"timing-{key_of({'tensorrt': known['tensorrt'], 'gpu': known['gpu']})[:16]}.bin"

    def build() -> tuple[memoryview, dict[str, Any]]:
        start = time.perf_counter()
        plan, measured = _in_thread(bundle, graph, recipe, cache.read_timing(timing), progress)
        cache.write_timing(timing, measured)
        return plan, {"seconds": round(time.perf_counter() - start, 3)}

    def waiting() -> None:
        progress(graph, "another process builds it; waiting", 0, 0)

    key = key_of(known)
    path, details, hit = cache.get(key, known, build, waiting)
    progress(graph, "from the cache" if hit else "built", 1, 1)
    return Built(graph, path, key, hit, details["seconds"], path.stat().st_size)


def _in_thread(
    bundle: Bundle, graph: str, recipe: Recipe, timing: bytes, progress: Progress
) -> tuple[memoryview, bytes]:
    go_on = threading.Event()
    go_on.set()
    steps: queue.Queue[tuple[str, int, int] | None] = queue.Queue()
    result: list[Any] = []

    def step(phase: str, number: int, of: int) -> bool:
        steps.put((phase, number, of))
        return go_on.is_set()

    def work() -> None:
        try:
            parsed = parse(bundle, graph, recipe)
            parsed.require(graph)
            shapes = profiles(graph, bundle.manifest.geometry, recipe)
            result.append(parsed.build(graph, recipe, shapes, timing, step))
        except BaseException as error:
            result.append(error)
        steps.put(None)

    progress(graph, "parsing", 0, 0)
    thread = threading.Thread(target=work, name=f"build {graph}", daemon=True)
    thread.start()
    try:
        while (found := steps.get()) is not None:
            progress(graph, *found)
        thread.join()
    except BaseException:
        go_on.clear()
        thread.join()
        raise
    (outcome,) = result
    if isinstance(outcome, BaseException):
        raise outcome
    plan, measured = outcome
    return plan, measured


def _described(plan: Built) -> dict[str, Any]:
    """What the manifest says of a plan."""
    described = {"key": plan.key, "seconds": plan.seconds}
    return described | ({"attention": asdict(plan.attention)} if plan.attention else {})


def write_plans(bundle: Bundle, recipe: Recipe, built: list[Built], out: Path) -> Bundle:
    """Write the bundle `out` with plans instead of graphs, and the source's other files. Raises OutputError."""
    about = facts(bundle, built[0].graph, recipe)
    files = bundle.manifest.files
    plans = Plans(
        recipe=recipe.name,
        options=recipe.options(),
        ring=recipe.ring,
        tensorrt=about["tensorrt"],
        version_compatible=recipe.version_compatible,
        cuda=about["cuda"],
        gpu=about["gpu"],
        source=key_of({name: file["sha256"] for name, file in files.items()}),
        graphs={plan.graph: _described(plan) for plan in built},
        scales=_scales(bundle, recipe),
    )
    with writing(out, replace(bundle.manifest, plans=plans, files={})) as folder:
        try:
            for plan in built:
                shutil.copyfile(plan.path, folder / f"{plan.graph}.plan")
            for name in (CONSTANTS, REFERENCE):
                if name in files:
                    shutil.copyfile(bundle.path / name, folder / name)
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {error.strerror}", fix="free space") from error
    return Bundle.load(out)
