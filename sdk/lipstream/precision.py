"""Number formats of a bundle's graphs. Without imports, to keep the command line's start fast."""

from __future__ import annotations

PRECISIONS = ("fp32", "bf16", "fp8")
