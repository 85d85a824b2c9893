"""The models in PyTorch: the causal student and the video autoencoder around it."""

from .clip import ClipAttention
from .config import STUDENTS, StudentConfig, TAEHVConfig
from .dit import CausalDiT
from .ring import KVRing, RingGeometry
from .taehv import TAEHV

__all__ = ["STUDENTS", "TAEHV", "CausalDiT", "ClipAttention", "KVRing", "RingGeometry", "StudentConfig", "TAEHVConfig"]
