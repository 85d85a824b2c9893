"""Random numbers per sample, independent of the process that computes it.

Each sample of each iteration has its own generator. So an interrupted run continues with the same numbers without a
saved state, and one process with accumulation draws the same numbers as two ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class Noise:
    """Draws for a batch: row i from the generator of ``samples[i]``.

    Args:
        seed: of the run. iteration: number of the update. samples: numbers of the samples within it. use: what the
            numbers are for, so that the critic and the student draw different ones.
    """

    def __init__(self, seed: int, iteration: int, samples: Sequence[int], use: str) -> None:
        self.samples = tuple(samples)
        self._generators = [torch.Generator().manual_seed(_seed(seed, iteration, sample, use)) for sample in samples]

    def normal(self, like: Tensor) -> Tensor:
        """Unit normal, of the shape, type and device of `like` [B, ...]."""
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in self._generators]
        return torch.stack(rows).to(like.device, like.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1), float32 [B, *shape]."""
        return torch.stack([torch.rand(shape, generator=generator) for generator in self._generators])

    def integers(self, below: int, *shape: int) -> Tensor:
        """0 .. below - 1, int64 [B, *shape]."""
        return torch.stack([torch.randint(below, shape, generator=generator) for generator in self._generators])


def shared_integer(seed: int, iteration: int, below: int, use: str) -> int:
    """0 .. below - 1, which follows from the arguments alone: the same on all ranks that ask with the same."""
    generator = torch.Generator().manual_seed(_seed(seed, iteration, -1, use))
    return int(torch.randint(below, (), generator=generator))


def _seed(*parts: int | str) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")
