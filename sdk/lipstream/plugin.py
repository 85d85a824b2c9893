"""The TensorRT plugin of the K/V ring: a library beside LipStream's other compiled parts (csrc/plugin)."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from . import _native
from .errors import BackendError

NAME, VERSION, NAMESPACE = "KVRingWrite", "2", "lipstream"
"""What a plan and TensorRT's registry call it. The version changes with its inputs, outputs or arithmetic."""

LIBRARY = "lipstream_plugin.dll" if sys.platform == "win32" else "liblipstream_plugin.so"
_REBUILD = "install the CUDA toolkit, then pip install --force-reinstall --no-deps . in the checkout"


def library() -> Path:
    """Path of the library. Raises BackendError if LipStream was built without it."""
    found = Path(_native.__file__).parent / "lib" / LIBRARY
    if not found.is_file():
        raise BackendError(
            f"the ring's TensorRT plugin is missing: {found}",
            expected="nvcc when LipStream is built",
            fix=f'{_REBUILD}; or ring = "native" in the recipe, which needs no plugin',
        )
    return found


def fingerprint() -> str:
    """SHA-256 of the library. Raises BackendError if there is none."""
    return hashlib.sha256(library().read_bytes()).hexdigest()


def is_registered(registry: Any) -> bool:
    """Whether TensorRT's registry knows this version of the plugin; `get_creator` would log an error if not."""
    wanted = (NAME, VERSION, NAMESPACE)
    return any((c.name, c.plugin_version, c.plugin_namespace) == wanted for c in registry.all_creators)


def load_plugin(trt: Any) -> None:
    """Register the plugin with TensorRT, the module `trt`, once in a process.

    Raises:
        BackendError: the library is missing, does not load, or has another version of the plugin.
    """
    registry = trt.get_plugin_registry()
    if is_registered(registry):
        return
    path = library()
    if registry.load_library(str(path)) is None or not is_registered(registry):
        raise BackendError(
            f"{path} does not give TensorRT {trt.__version__} the plugin {NAMESPACE}::{NAME}, version {VERSION}",
            expected="the library of this LipStream",
            fix=_REBUILD,
        )
