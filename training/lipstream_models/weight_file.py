"""The weights of a bundle: the place of each in the file that its graphs share, and how to read it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WEIGHTS = "weights.bin"
PLACES = "weights.json"


def read_weight(data: NDArray[np.uint8], place: dict[str, Any]) -> Tensor:
    """One weight, in float32.

    Args:
        data: the bytes of `WEIGHTS`.
        place: its entry in `PLACES`: `offset` in bytes, `shape`, `bfloat16` (else float32), and `transposed` if it is
            stored as the transpose of a matrix with `shape[0]` rows.
    """
    shape = place["shape"]
    dtype = np.dtype(np.uint16 if place["bfloat16"] else np.float32)
    stored = data[place["offset"] :][: math.prod(shape) * dtype.itemsize].view(dtype)
    if place["bfloat16"]:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    if place["transposed"]:
        stored = stored.reshape(-1, shape[0]).T
    return torch.from_numpy(np.array(stored.reshape(shape)))
