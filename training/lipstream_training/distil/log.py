"""Where the numbers and pictures of a run go: OUT/log.jsonl always; TensorBoard, Weights & Biases, MLflow by name."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from lipstream.errors import ConfigError, MissingExtraError

from . import parallel


class Logger(Protocol):
    """A place for numbers and pictures."""

    def numbers(self, iteration: int, numbers: Mapping[str, float]) -> None: ...

    def pictures(self, iteration: int, pictures: Mapping[str, Any]) -> None:
        """Pictures uint8 [H, W, 3] by name."""

    def close(self, *, failed: bool) -> None: ...


class _Lines:
    """OUT/log.jsonl: a line of JSON for each update."""

    def __init__(self, out: Path) -> None:
        self._file = (out / "log.jsonl").open("a")

    def numbers(self, iteration: int, numbers: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"iteration": iteration, **numbers}) + "\n")
        self._file.flush()

    def pictures(self, iteration: int, pictures: Mapping[str, Any]) -> None:
        """Not in this file."""

    def close(self, *, failed: bool) -> None:
        self._file.close()


class _TensorBoard:
    """Files in OUT/log."""

    def __init__(self, out: Path, fields: Mapping[str, Any]) -> None:
        self._writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(str(out / "log"))
        self._writer.add_text("recipe", "    " + json.dumps(fields, indent=1).replace("\n", "\n    "))

    def numbers(self, iteration: int, numbers: Mapping[str, float]) -> None:
        for name, x in numbers.items():
            self._writer.add_scalar(name, x, iteration)

    def pictures(self, iteration: int, pictures: Mapping[str, Any]) -> None:
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, iteration, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases, set up by its own environment: WANDB_PROJECT, WANDB_MODE=offline, ..."""

    def __init__(self, out: Path, fields: Mapping[str, Any]) -> None:
        self._wandb: Any = import_module("wandb")
        kept = out / "wandb-run"  # its id: a run that continues here continues there
        identity = kept.read_text() if kept.is_file() else None
        self._run = self._wandb.init(dir=str(out), name=out.name, config=dict(fields), id=identity, resume="allow")
        kept.write_text(self._run.id)

    def numbers(self, iteration: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=iteration)

    def pictures(self, iteration: int, pictures: Mapping[str, Any]) -> None:
        self._run.log({name: self._wandb.Image(picture) for name, picture in pictures.items()}, step=iteration)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """A run of MLflow, set up by its own environment: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ..."""

    def __init__(self, out: Path, fields: Mapping[str, Any]) -> None:
        self._mlflow: Any = import_module("mlflow")
        kept = out / "mlflow-run"
        if kept.is_file():
            self._mlflow.start_run(run_id=kept.read_text())
        else:
            run = self._mlflow.start_run(run_name=out.name)
            self._mlflow.log_params(dict(fields))  # MLflow refuses to change them later
            kept.write_text(run.info.run_id)

    def numbers(self, iteration: int, numbers: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(numbers), step=iteration)

    def pictures(self, iteration: int, pictures: Mapping[str, Any]) -> None:
        for name, picture in pictures.items():
            self._mlflow.log_image(picture, key=name, step=iteration)

    def close(self, *, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


_LOGGERS: dict[str, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}


def logger_names(text: str) -> tuple[str, ...]:
    """Names of loggers from a list with commas; empty for log.jsonl alone.

    Raises:
        ConfigError: an unknown one. MissingExtraError: its package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in _LOGGERS:
            raise ConfigError(f"--loggers {name!r}", expected=f"some of {','.join(_LOGGERS)}")
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtraError(f"--loggers {name} needs the package {name}", fix=f"pip install {name}") from error
    return names


class Log:
    """All loggers of a run, on rank 0 only. A context manager.

    Args:
        fields: the recipe, by name. names: see `logger_names`.
    """

    def __init__(self, out: Path, fields: Mapping[str, Any], names: Sequence[str]) -> None:
        self._loggers: list[Logger] = []
        if parallel.rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
            self._loggers = [_Lines(out), *(_LOGGERS[name](out, fields) for name in names)]

    def __enter__(self) -> Log:
        return self

    def numbers(self, iteration: int, numbers: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.numbers(iteration, numbers)

    def pictures(self, iteration: int, pictures: Mapping[str, Any]) -> None:
        for logger in self._loggers:
            logger.pictures(iteration, pictures)

    def __exit__(self, kind: object, *_: object) -> None:
        for logger in self._loggers:
            logger.close(failed=kind is not None)


def peak_memory(device: torch.device) -> float:
    """Most memory that this process has used so far, GiB: allocated by torch on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
