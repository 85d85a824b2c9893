"""Build with TensorRT's API: parse, configure, build, with progress and cancellation.

Polygraphy's loaders are not used: they offer no IProgressMonitor that can cancel, and parse a changed graph only with
its weights in memory (docs/engines.md).
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lipstream.errors import EngineBuildError, MissingExtraError
from lipstream.plugin import load_plugin

from .recipe import Recipe

Profile = Mapping[str, tuple[int, ...]]
"""The single shape of each input of variable size."""


def tensorrt() -> Any:
    """The module.

    Raises:
        MissingExtraError: it is not installed, or its libraries are missing.
    """
    try:
        return importlib.import_module("tensorrt")
    except Exception as error:  # besides ImportError, errors that its start-up raises if libraries are missing
        raise MissingExtraError(
            f"engines need TensorRT, which cannot be imported: {error}",
            expected="TensorRT 11 and its libraries",
            fix="pip install 'lipstream[tensorrt]', then lipstream doctor",
        ) from error


class Cancelled(Exception):
    """The progress callback requested cancellation."""


class Parsed:
    """A graph parsed by TensorRT.

    Attributes:
        network: the INetworkDefinition. errors: the unsupported nodes, one line each; empty if all are supported.
    """

    def __init__(self, model: bytes, place: Path, *, plugin: bool = False) -> None:
        """Parse `model`, an ONNX graph whose weights lie in files beside `place`.

        Args:
            plugin: whether it has nodes of LipStream's plugin.

        Raises:
            BackendError: the plugin is needed and missing.
        """
        self._trt = trt = tensorrt()
        self._plugin = plugin
        if plugin:
            load_plugin(trt)
        self._logger = _logger(trt)  # TensorRT keeps only a pointer to it
        self._builder = trt.Builder(self._logger)
        self.network = self._builder.create_network(0)
        self._parser = trt.OnnxParser(self.network, self._logger)
        self.errors: list[str] = []
        if not self._parser.parse(model, str(place)):
            found = [self._parser.get_error(i) for i in range(self._parser.num_errors)]
            self.errors = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found]
            self.errors = self.errors or self._logger.errors or ["the parser gives no reason"]

    def require(self, name: str) -> None:
        """Raise EngineBuildError, which names the nodes, if there are errors."""
        if self.errors:
            more = f"\n  and {len(self.errors) - 5} more" if len(self.errors) > 5 else ""
            raise EngineBuildError(
                f"TensorRT {self._trt.__version__} cannot parse the graph {name}:\n  "
                + "\n  ".join(self.errors[:5])
                + more,
                expected="operators that its parser knows",
                fix="another ring in the recipe, or TensorRT 11.1 or later",
            )

    def layers(self) -> dict[str, int]:
        """Number of layers of each kind."""
        kinds = [self.network.get_layer(i).type.name.lower() for i in range(self.network.num_layers)]
        return {kind: kinds.count(kind) for kind in sorted({*kinds})}

    def build(
        self,
        name: str,
        recipe: Recipe,
        profiles: Sequence[Profile],
        timing_cache: bytes,
        progress: Callable[[str, int, int], bool],
    ) -> tuple[memoryview, bytes]:
        """Build the plan; return it with the updated timing cache.

        Blocks in C++ without handling signals. `progress` gets (phase, step, steps) and returns whether to continue.

        Raises:
            EngineBuildError: TensorRT cannot build it. Cancelled: `progress` returned False.
        """
        trt = self._trt
        config = self._builder.create_builder_config()
        config.builder_optimization_level = recipe.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)  # operators that stay in float32 in these graphs need its precision
        if self._plugin:  # its outputs are its inputs' memory
            config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if recipe.workspace_gib:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(recipe.workspace_gib * 2**30))
        for wanted, flag in (
            (recipe.version_compatible, "VERSION_COMPATIBLE"),
            (recipe.weight_streaming, "WEIGHT_STREAMING"),
        ):
            if wanted:
                config.set_flag(getattr(trt.BuilderFlag, flag))
        for shapes in profiles:
            profile = self._builder.create_optimization_profile()
            for tensor, shape in shapes.items():
                profile.set_shape(tensor, shape, shape, shape)
            config.add_optimization_profile(profile)
        cache = config.create_timing_cache(timing_cache)
        config.set_timing_cache(cache, ignore_mismatch=False)
        monitor = _monitor(trt, progress)
        config.progress_monitor = monitor
        plan = self._builder.build_serialized_network(self.network, config)
        if monitor.cancelled:
            raise Cancelled
        if plan is None:
            raise EngineBuildError(
                f"TensorRT {trt.__version__} cannot build the graph {name}:\n  "
                + "\n  ".join(self._logger.errors[-5:]),
                fix="more GPU memory, another ring or a lower optimization_level in the recipe",
            )
        return memoryview(plan), bytes(config.get_timing_cache().serialize())


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Collects errors for the exception; ignores other messages."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Logger()


def _monitor(trt: Any, progress: Callable[[str, int, int], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Forwards TensorRT's phases; several may be active at once, in several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._steps: dict[str, int] = {}
            self._lock = threading.Lock()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            with self._lock:
                steps = self._steps.get(phase, 0)
            self.cancelled |= not progress(phase, step + 1, steps)
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            with self._lock:
                self._steps.pop(phase, None)

    return Monitor()
