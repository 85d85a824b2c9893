"""PyTorch models: the causal student, the video codecs and the audio encoder."""

from .clip import ClipAttention
from .config import STUDENTS, StudentConfig, TAEHVConfig
from .dit import CausalDiT
from .perceptron import SpeechPerceptron
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
    "SpeechPerceptron",
    "StudentConfig",
    "TAEHVConfig",
    "WanVAE",
    "WanVAEConfig",
]
