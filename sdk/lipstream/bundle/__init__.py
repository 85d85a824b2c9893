"""Bundles: the folder format in which a student is exported, and everything that reads, checks and writes it."""

from .bundle import BESIDE, SHIPPED, Bundle, reading, sha256, unlisted, writing
from .manifest import CONSTANTS, MANIFEST, REBUILD, SCHEMA, AudioGeometry, Geometry, Manifest

__all__ = [
    "BESIDE",
    "CONSTANTS",
    "MANIFEST",
    "REBUILD",
    "SCHEMA",
    "SHIPPED",
    "AudioGeometry",
    "Bundle",
    "Geometry",
    "Manifest",
    "reading",
    "sha256",
    "unlisted",
    "writing",
]
