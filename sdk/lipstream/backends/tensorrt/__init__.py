"""TensorRT engines on an NVIDIA GPU: a chunk runs through all five without host synchronisation in between."""

from .backend import TensorRTBackend

__all__ = ["TensorRTBackend"]
