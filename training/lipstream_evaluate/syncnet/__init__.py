"""SyncNet: the agreement of lips and sound, and the offset between them in frames."""

from .mfcc import mfcc
from .model import DRAWN, FRAMES, PER_FRAME, SyncNet, SyncNetConfig, load_syncnet, save_syncnet
from .score import SHIFTS, LipReader, SyncScore, distances, embed, embed_audio, score, sync_score

__all__ = [
    "DRAWN",
    "FRAMES",
    "PER_FRAME",
    "SHIFTS",
    "LipReader",
    "SyncNet",
    "SyncNetConfig",
    "SyncScore",
    "distances",
    "embed",
    "embed_audio",
    "load_syncnet",
    "mfcc",
    "save_syncnet",
    "score",
    "sync_score",
]
