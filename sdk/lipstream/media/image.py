"""Validation of input pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB 0..255."""


def check_picture(picture: Any, size: tuple[int, ...] | None = None, what: str = "a frame") -> None:
    """Raise ConfigError unless `picture` is uint8 [H, W, 3], not empty, and of `size` (H, W, 3) if given."""
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        found = f"{getattr(picture, 'dtype', type(picture).__name__)} {list(np.shape(picture))}"
        raise ConfigError(f"{what} is {found}", expected="uint8 [height, width, 3], RGB 0..255")
    if not picture.size:
        raise ConfigError(f"{what} is {list(picture.shape)}", expected="at least one pixel")
    if size is not None and picture.shape != tuple(size):
        raise ConfigError(f"{what} is {list(picture.shape)}", expected=f"{list(size)}, like the others")
