"""Checks what LipStream depends on, on this machine: the report of `lipstream doctor`, worst findings first."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..backends.base import cores
from ..bundle import Bundle
from ..bundle.plans import require_runnable
from ..errors import LipStreamError
from ..gpu import TENSORRT_DRIVER, Driver, NoDriverError, driver, too_old_for_tensorrt
from ..plugin import library

RANKS = ("broken", "missing", "ok")
"""broken: an installed or requested part does not work. missing: an optional part is not installed."""


@dataclass(frozen=True)
class Finding:
    """Result of one check. Attributes: state: of `RANKS`. fix: the command that repairs it, empty if there is none."""

    state: str
    name: str
    found: str
    fix: str = ""


def examine(bundle: str | os.PathLike[str] | None = None, required: Collection[str] = ()) -> dict[str, Any]:
    """Check everything that LipStream may use; with `bundle`, also whether that bundle runs here.

    Args:
        required: names of findings in lower case that are broken if they are missing.

    Returns:
        `ok` (nothing is broken) and `findings`, worst first, each a `Finding` as a dict.
    """
    machine = _driver()
    checks: list[Callable[[], Finding | list[Finding]]] = [
        _lipstream,
        _media,
        lambda: _bundle("tiny"),
        _onnxruntime,
        _torch,
        lambda: _gpus(machine),
        lambda: _tensorrt(machine),
        _disk,
    ]
    if bundle is not None:
        checks.append(lambda: _given(bundle, machine))
    findings: list[Finding] = []
    for check in checks:
        found = check()
        findings += found if isinstance(found, list) else [found]
    for i, finding in enumerate(findings):
        if finding.state == "missing" and finding.name.lower() in required:
            findings[i] = replace(finding, state="broken")
    findings.sort(key=lambda finding: RANKS.index(finding.state))
    return {"ok": all(f.state != "broken" for f in findings), "findings": [asdict(f) for f in findings]}


def describe(report: dict[str, Any]) -> str:
    """The report of `examine` as text."""
    lines = []
    for f in report["findings"]:
        lines.append(f"{f['state']:8} {f['name']:12} {f['found']}")
        if f["fix"]:
            lines.append(f"{'':21} fix: {f['fix']}")
    return "\n".join(lines)


def _lipstream() -> Finding:
    where = f"{__version__}, Python {platform.python_version()}, {platform.platform()}, {cores()} cores"
    try:
        importlib.import_module("lipstream._native")
    except ImportError as error:
        return Finding(
            "broken",
            "lipstream",
            f"{where}; _native: {error}",
            "pip install --force-reinstall .",
        )
    return Finding("ok", "lipstream", where)


def _media() -> Finding:
    try:
        import av
        import cv2
        from av.codec import Codec
    except ImportError as error:
        return Finding("broken", "media", str(error), "pip install --force-reinstall av opencv-python-headless")
    absent = []
    writers, readers = ("libx264", "aac", "ffv1"), ("h264", "hevc", "vp9", "av1", "aac", "mp3", "opus")
    for codec in {*writers, *readers}:
        try:
            Codec(codec, "w" if codec in writers else "r")
        except Exception:  # PyAV's own class, whose name differs between versions
            absent.append(codec)
    versions = f"PyAV {av.__version__}, OpenCV {cv2.__version__}"
    if absent:
        return Finding(
            "broken", "media", f"{versions}, without {', '.join(absent)}", "pip install --force-reinstall av"
        )
    return Finding("ok", "media", f"{versions}, codecs complete")


def _bundle(name: str) -> Finding:
    try:
        bundle = Bundle.load(name)
    except LipStreamError as error:
        return Finding("broken", f"bundle {name}", error.found, error.fix)
    return Finding("ok", f"bundle {name}", f"{bundle.manifest.precision}, every file matches the manifest")


def _onnxruntime() -> list[Finding]:
    try:
        import onnxruntime
    except ImportError as error:
        return [Finding("broken", "onnxruntime", str(error), "pip install --force-reinstall onnxruntime")]
    installed = sorted({_package(name) for name in ("onnxruntime", "onnxruntime-gpu")} - {""})
    names = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    found = Finding("ok", "onnxruntime", f"{onnxruntime.__version__}, providers: {', '.join(names)}")
    if len(installed) > 1:
        both = " and ".join(installed)
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'lipstream[gpu]'"
        return [Finding("broken", "onnxruntime", f"{both} overwrite each other's files", fix)]
    if "CUDA" in names:
        return [found]
    fix = "pip uninstall -y onnxruntime, then pip install 'lipstream[gpu]'"
    return [found, Finding("missing", "onnxruntime-gpu", "onnxruntime has no CUDA provider (provider='cuda')", fix)]


def _torch() -> Finding:
    version = _package("torch")
    if not version:
        return Finding("missing", "torch", "not installed: no export, no training", "pip install 'lipstream[export]'")
    return Finding("ok", "torch", version)


def _driver() -> Driver | str:
    try:
        return driver()
    except NoDriverError as error:
        return str(error)


def _gpus(machine: Driver | str) -> Finding:
    if isinstance(machine, str):
        fix = "install NVIDIA's driver; in a container: docker run --gpus all, with nvidia-container-toolkit"
        return Finding("missing", "GPU", machine, fix)
    if not machine.gpus:
        return Finding("missing", "GPU", "the driver shows none", "nvidia-smi -L; CUDA_VISIBLE_DEVICES hides them, too")
    gpus = ", ".join(
        f"{gpu.name} (compute capability {gpu.compute_capability}, {gpu.memory / 2**30:.0f} GiB)"
        for gpu in machine.gpus
    )
    return Finding("ok", "GPU", f"{gpus}; the driver runs CUDA up to {machine.cuda}")


def _tensorrt(machine: Driver | str) -> list[Finding]:
    bindings, libraries = (_package(f"tensorrt-cu13-{part}") for part in ("bindings", "libs"))
    if bindings and libraries and bindings.split()[-1] != libraries.split()[-1]:
        fix = f"pip install --force-reinstall tensorrt-cu13=={bindings.split()[-1]}"
        return [Finding("broken", "TensorRT", f"{bindings} beside {libraries}", fix)]
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError:
        return [
            Finding(
                "missing",
                "TensorRT",
                "not installed: no lipstream build or verify",
                "pip install 'lipstream[tensorrt]'",
            )
        ]
    except Exception as error:  # TensorRT raises other errors if its libraries are missing
        return [Finding("broken", "TensorRT", str(error), "pip install --force-reinstall 'lipstream[tensorrt]'")]
    findings = [Finding("ok", "TensorRT", trt.__version__)]
    if int(trt.__version__.split(".")[0]) != 11:
        fix = "pip install 'lipstream[tensorrt]'"
        findings = [Finding("broken", "TensorRT", f"{trt.__version__}, but LipStream needs TensorRT 11", fix)]
    if not isinstance(machine, str) and (problem := too_old_for_tensorrt(machine)):
        findings.append(Finding("broken", "CUDA", problem, TENSORRT_DRIVER))
    for module in ("cuda-bindings", "polygraphy", "onnx"):
        if not _package(module):
            findings.append(Finding("missing", module, "not installed", "pip install 'lipstream[tensorrt]'"))
    return findings


def _disk() -> Finding:
    folder = Path(os.environ.get("TMPDIR") or "/tmp") if os.name == "posix" else Path(os.environ.get("TEMP", "."))
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("broken", "disk", f"{folder}: {error}", "set TMPDIR to a folder that exists")
    state, fix = ("ok", "") if free > 2 << 30 else ("broken", f"free space in {folder}, or set TMPDIR")
    return Finding(state, "disk", f"{free / 2**30:.1f} GiB free in {folder}, where looped videos are kept", fix)


def _given(source: str | os.PathLike[str], machine: Driver | str) -> Finding:
    name = f"bundle {Path(source).name}"
    try:
        bundle = Bundle.load(source)
        if bundle.manifest.plans is None:
            if bundle.manifest.precision == "fp32":
                return Finding("ok", name, "fp32 graphs: backends onnxruntime and torch run it")
            what = f"{bundle.manifest.precision} graphs, from which engines are built"
            return Finding("ok", name, what, "lipstream build --list")
        if isinstance(machine, str) or not machine.gpus:
            return Finding("broken", name, "TensorRT plans, but no GPU to run them", "see GPU")
        if problem := too_old_for_tensorrt(machine):
            return Finding("broken", name, problem, TENSORRT_DRIVER)
        try:
            version = importlib.import_module("tensorrt").__version__
        except Exception as error:
            return Finding("broken", name, f"TensorRT plans, but no TensorRT: {error}", "see TensorRT")
        require_runnable(bundle.manifest.plans, bundle.path, tensorrt=version, gpu=machine.gpus[0])
        if bundle.manifest.plans.ring == "plugin":
            library()
    except LipStreamError as error:
        return Finding("broken", name, error.found, error.fix)
    verified = bundle.manifest.plans.verified
    if verified is None:
        return Finding("ok", name, "its plans run here; not verified yet", f"lipstream verify {bundle.path}")
    if not verified.get("passed"):
        return Finding("broken", name, "its plans run here but failed verification", f"lipstream verify {bundle.path}")
    return Finding("ok", name, "its plans run here, verified")


def _package(name: str) -> str:
    """ "name version" of an installed distribution; empty if it is not installed."""
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return ""
