"""LipStream puts new speech on a person's lips in a video, live.

from lipstream import LipSyncEngine

engine = LipSyncEngine.load("tiny")
engine.dub("in.mp4", "speech.wav", "out.mp4")
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

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
