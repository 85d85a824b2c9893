"""TensorRT engines on an NVIDIA GPU: one stream's chunk goes through all five without the host waiting in between."""

from .backend import TensorRTBackend

__all__ = ["TensorRTBackend"]
