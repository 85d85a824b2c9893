"""Loops compiled by Numba: results are the same in every run, since nothing is reordered (no fastmath, no threads)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from lipstream.errors import MissingExtraError

from .packages import FIX

try:
    import numba
except ImportError as error:
    raise MissingExtraError("numba is not installed", expected="a compiler of the renderer", fix=FIX) from error

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`function` compiled when it is first called; the machine code is cached on disk. Division by zero gives inf."""
    return cast(F, numba.njit(cache=True, error_model="numpy")(function))
