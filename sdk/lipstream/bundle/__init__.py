"""Bundles: the folder format in which a student is exported, and everything that reads, checks and writes it."""

from .bundle import BESIDE, SHIPPED, Bundle, reading, require_replaceable, sha256, sign, unlisted, writing
from .keys import Trust, public_keys
from .manifest import CONSTANTS, IDENTITY, MANIFEST, REBUILD, SCHEMA, SIGNATURE, AudioGeometry, Geometry, Manifest

__all__ = [
    "BESIDE",
    "CONSTANTS",
    "IDENTITY",
    "MANIFEST",
    "REBUILD",
    "SCHEMA",
    "SHIPPED",
    "SIGNATURE",
    "AudioGeometry",
    "Bundle",
    "Geometry",
    "Manifest",
    "Trust",
    "public_keys",
    "reading",
    "require_replaceable",
    "sha256",
    "sign",
    "unlisted",
    "writing",
]
