"""Backends: whatever can run the graphs of a bundle. They are found through the entry points `lipstream.backends`."""

from .base import Backend, Stream, load_backend

__all__ = ["Backend", "Stream", "load_backend"]
