"""LipStream lip-syncs the face in a video to new speech, in real time.

from lipstream import LipSyncEngine

engine = LipSyncEngine.load("tiny")
engine.dub("in.mp4", "speech.wav", "out.mp4")
"""

from __future__ import annotations

import importlib
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle
    from .dub import DubResult
    from .engine import LipSyncEngine
    from .errors import LipStreamError, LipStreamInternalError
    from .face import FaceOptions
    from .session import Frame, LipSyncSession, PreparedReference, RealtimePlayer

__all__ = [
    "Bundle",
    "DubResult",
    "FaceOptions",
    "Frame",
    "LipStreamError",
    "LipStreamInternalError",
    "LipSyncEngine",
    "LipSyncSession",
    "PreparedReference",
    "RealtimePlayer",
]

try:
    __version__ = version("lipstream")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0"

logging.getLogger("lipstream").addHandler(logging.NullHandler())
# From 1.29 on, ONNX Runtime keeps an identifier of the machine and sends events to Microsoft, unless this is set before
# it is imported. A user who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "Bundle": "bundle",
    "DubResult": "dub",
    "FaceOptions": "face",
    "Frame": "session",
    "LipStreamError": "errors",
    "LipStreamInternalError": "errors",
    "LipSyncEngine": "engine",
    "LipSyncSession": "session",
    "PreparedReference": "session",
    "RealtimePlayer": "session",
}

if not TYPE_CHECKING:  # with __getattr__, type checkers accept any name

    def __getattr__(name: str) -> Any:
        """Load public names on first use: `lipstream --help` then needs neither numpy nor OpenCV."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
