"""The models in PyTorch: the causal student, and what turns pictures and sound into what it works on."""

from .clip import ClipAttention
from .config import STUDENTS, StudentConfig, TAEHVConfig
from .dit import CausalDiT
from .ring import KVRing, RingGeometry
from .speech import SpeechEncoder
from .taehv import TAEHV
from .wan_vae import WanVAE, WanVAEConfig

__all__ = [
    "STUDENTS",
    "TAEHV",
    "CausalDiT",
    "ClipAttention",
    "KVRing",
    "RingGeometry",
    "SpeechEncoder",
    "StudentConfig",
    "TAEHVConfig",
    "WanVAE",
    "WanVAEConfig",
]
