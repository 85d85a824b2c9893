"""Checks of arguments of the public API: a ConfigError states what was found, and what is expected."""

from __future__ import annotations

import math
import os

import numpy as np

from .errors import ConfigError


def check_path(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}={value!r}, of type {type(value).__name__}", expected="a path: str or os.PathLike")


def check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise ConfigError(f"{name}={value!r}", expected="a function, or None")


def check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{name}={value!r}", expected=kind.__name__)


def check_count(name: str, value: object, *, least: int, expected: str) -> None:
    """Raise unless `value` is a whole number from `least` on."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name}={value!r}", expected=expected)


def check_number(name: str, value: object, *, above: float = 0.0, most: float = math.inf, expected: str) -> None:
    """Raise unless `value` is a finite number with above < value <= most."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or not math.isfinite(value) or not above < value <= most:  # type: ignore[arg-type,operator]
        raise ConfigError(f"{name}={value!r}", expected=expected)
