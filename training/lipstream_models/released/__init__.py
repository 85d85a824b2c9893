"""The published files of the upstream system: identifying them, and loading their weights into our models.

Files are memory-mapped and never executed: safetensors, or PyTorch's format through ``weights_only``.
"""

from .files import Kind, describe, identify, open_weights
from .student import load_student
from .video import load_taehv, load_wan_vae

__all__ = ["Kind", "describe", "identify", "load_student", "load_taehv", "load_wan_vae", "open_weights"]
