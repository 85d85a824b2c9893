"""The order of the clips of a run, from one folder of shards or from several by weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from lipstream.errors import ConfigError
from torch import Tensor

from .noise import Noise


class Mixture:
    """The clip of every sample of a run, which follows from the seed and the sample's number alone.

    An epoch has as many samples as there are clips. Each epoch has the same number of samples of a folder, ``quotas``:
    its weight's share of the epoch, rounded to whole clips (largest remainder). The folders alternate at random. The
    clips of each folder are taken in a random order, all of them before any is repeated.

    Args:
        sizes: clips of each folder; clips are numbered through, folder by folder.
        weights: of each folder, positive; None: the sizes, so that every epoch has every clip once.

    Raises:
        ConfigError: a weight is not positive, or so small that an epoch has no clip of its folder.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        self.sizes, self.weights, self._seed = tuple(sizes), tuple(weights or sizes), seed
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ConfigError(f"weights {self.weights}", expected="positive numbers")
        self._length = sum(sizes)
        self._starts = list(accumulate(sizes, initial=0))
        self.quotas = _rounded(self._length, self.weights)
        if 0 in self.quotas:
            raise ConfigError(
                f"of folders with weights {self.weights} an epoch of {self._length} clips has {self.quotas}",
                expected="at least one clip of each folder",
                fix="a larger weight, or without that folder",
            )
        self._epoch: tuple[int, Tensor, Tensor] | None = None
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def clip(self, number: int) -> int:
        """The clip of the `number`-th sample, from 0."""
        epoch, index = divmod(number, self._length)
        if self._epoch is None or self._epoch[0] != epoch:
            folders = torch.repeat_interleave(torch.arange(len(self.quotas)), torch.tensor(self.quotas))
            folders = folders[self._shuffled(epoch, "folders", 0, self._length)]
            earlier = torch.empty_like(folders)  # samples of the same folder in this epoch, before each
            for folder, quota in enumerate(self.quotas):
                earlier[folders == folder] = torch.arange(quota)
            self._epoch = epoch, folders, earlier
        _, folders, earlier = self._epoch
        folder = int(folders[index])
        lap, place = divmod(epoch * self.quotas[folder] + int(earlier[index]), self.sizes[folder])
        if folder not in self._orders or self._orders[folder][0] != lap:
            self._orders[folder] = lap, self._shuffled(lap, "order", folder, self.sizes[folder])
        return self._starts[folder] + int(self._orders[folder][1][place])

    def fields(self) -> dict[str, list[float]]:
        """What the order depends on beside the seed, as in a checkpoint's data.json."""
        return {"sizes": list(self.sizes), "weights": list(self.weights)}

    def _shuffled(self, lap: int, use: str, folder: int, count: int) -> Tensor:
        return Noise(self._seed, lap, [folder], use).uniform(count)[0].argsort(stable=True)


def _rounded(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers with the sum `total`, each less than 1 from its weight's share."""
    shares = [total * weight / sum(weights) for weight in weights]
    found = [int(share) for share in shares]
    missing = sorted(range(len(shares)), key=lambda i: found[i] - shares[i])
    for i in missing[: total - sum(found)]:
        found[i] += 1
    return found
