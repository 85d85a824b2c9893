"""Sessions: audio in, frames out, for one stream."""

from .session import LOG, Frame, Idle, LipSyncSession

__all__ = ["LOG", "Frame", "Idle", "LipSyncSession"]
