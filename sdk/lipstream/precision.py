"""Number formats of a bundle's graphs. A module without imports, because the command line reads it."""

from __future__ import annotations

PRECISIONS = ("fp32", "bf16", "fp8")
