"""SyncNet: how well lips and sound go together, and by how many frames they are apart."""

from .mfcc import mfcc
from .model import DRAWN, SyncNet, SyncNetConfig, load_syncnet
from .score import SHIFTS, LipReader, SyncScore, distances, embed, hear, score, sync_score

__all__ = [
    "DRAWN",
    "SHIFTS",
    "LipReader",
    "SyncNet",
    "SyncNetConfig",
    "SyncScore",
    "distances",
    "embed",
    "hear",
    "load_syncnet",
    "mfcc",
    "score",
    "sync_score",
]
