"""Backends: what can run the graphs of a bundle. They are found through the entry points `lipstream.backends`."""

from .base import Backend, ChunkInput, ChunkStream, PendingChunk, load_backend

__all__ = ["Backend", "ChunkInput", "ChunkStream", "PendingChunk", "load_backend"]
