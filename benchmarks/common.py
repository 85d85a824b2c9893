"""Shared code of the benchmarks: options, the machine's description, fresh processes, summaries, result files."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lipstream.bundle import MANIFEST, Bundle, sha256
from lipstream.errors import LipStreamError
from numpy.typing import ArrayLike

ROOT = Path(__file__).parent.parent
_PACKAGES = ("lipstream", "numpy", "onnxruntime", "torch", "opencv-python-headless", "av")
_T = TypeVar("_T")


def parser(
    module: str, description: str | None, *, bundle: bool = True, least: dict[str, Any] | None = None
) -> argparse.ArgumentParser:
    """The options that all benchmarks have.

    Args:
        module: the script's name. bundle: whether it runs one. least: what --quick sets.
    """
    options = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if bundle:
        options.add_argument("--bundle", default="tiny", help="folder or shipped name (default tiny)")
    options.add_argument("--threads", type=positive, default=cores(), help="CPU threads (default: all cores)")
    options.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers there")
    options.add_argument(
        "--quick", action="store_true", help="smallest run that exercises everything; not a valid result"
    )
    options.set_defaults(least=least or {})
    return options


def positive(text: str) -> int:
    """An argument that is a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def duration(text: str) -> float:
    """An argument that is a number of seconds from 1 on."""
    seconds = float(text)
    if not 1 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 1 on")
    return seconds


def main(run: Callable[[argparse.Namespace], bool], args: argparse.Namespace) -> int:
    """Exit status of a benchmark: 0 if `run` says that all criteria hold, else 1; an error's own for bad input."""
    for name, value in getattr(args, "least", {}).items() if getattr(args, "quick", False) else ():
        setattr(args, name, value)
    try:
        return 0 if run(args) else 1
    except LipStreamError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def in_fresh_process(function: Callable[..., _T], *arguments: Any, on_cores: int | None = None) -> _T:
    """Run ``function(*arguments)`` in a new interpreter, unaffected by what was loaded or measured before.

    Args:
        on_cores: how many of this process's cores it may use; None for all. It has them from its start, so that
            libraries that count cores when they are loaded see these. Linux.
    """
    allowed = os.sched_getaffinity(0)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        if on_cores is not None:
            os.sched_setaffinity(0, sorted(allowed)[:on_cores])
        try:
            return pool.submit(function, *arguments).result()
        finally:
            os.sched_setaffinity(0, allowed)


def memory_mib(field: str = "VmRSS") -> float:
    """Resident memory of this process in MiB now, or at its peak (``"VmHWM"``). Linux.

    Not `getrusage`: its maximum is inherited from the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def spread(values: ArrayLike) -> dict[str, float]:
    """Median, least and greatest of repeated measurements."""
    x = np.asarray(values, np.float64)
    return {"median": float(np.median(x)), "min": float(x.min()), "max": float(x.max()), "n": x.size}


def cores() -> int:
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """The hardware and software that the numbers of a result file depend on."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def write(path: Path | None, benchmark: str, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write a result file, if `path` is given: the numbers, the options, commit and machine.

    Paths among the options are reduced to their names; the bundle is also identified by the SHA-256 of its manifest,
    which contains that of every other file.
    """
    if path is None:
        return
    options = {k: _named(v) for k, v in vars(args).items() if k not in ("json", "least")}
    report: dict[str, Any] = {"benchmark": benchmark, "commit": commit(), "machine": machine(), "options": options}
    if "bundle" in options:
        folder = Bundle.load(options["bundle"], verify=False).path
        options["bundle"] = folder.name
        report["bundle_manifest_sha256"] = sha256(folder / MANIFEST)
    report["results"] = results
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(_rounded(report), indent=2) + "\n")
    temporary.replace(path)


def _named(option: Any) -> Any:
    """An option with paths reduced to their names."""
    if isinstance(option, list):
        return [_named(one) for one in option]
    return option.name if isinstance(option, Path) else option


def commit() -> str | None:
    """The commit that was measured, with ``-dirty`` if tracked files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    numbers = "family {cpu family}, model {model}, stepping {stepping}"
    return f"{fields['model name']} ({numbers.format(**fields)})" if "model name" in fields else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _rounded(x: Any) -> Any:
    """`x` with all floats rounded to six significant digits, and NaN, which JSON lacks, replaced by None."""
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    if isinstance(x, Sequence) and not isinstance(x, str):
        return [_rounded(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x
