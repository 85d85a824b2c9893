"""Sessions: audio in, frames out, for one stream."""

from .frame import Frame
from .idle import Idle
from .prepared import PreparedReference
from .realtime import RealtimePlayer
from .session import LipSyncSession

__all__ = ["Frame", "Idle", "LipSyncSession", "PreparedReference", "RealtimePlayer"]
