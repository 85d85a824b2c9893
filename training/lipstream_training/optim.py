"""Optimisation shared by all training stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lipstream.atomic import new_file
from torch import Tensor, nn


class Descent:
    """One run of `steps` steps of AdamW: cosine learning rate, gradients clipped at norm 1.

    It trains the parameters of `modules` that require gradients.
    """

    def __init__(self, modules: Iterable[nn.Module], steps: int, rate: float) -> None:
        self._parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self._parameters, rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.schedule = Cosine(self.optimizer, steps)

    def step(self, loss: Tensor) -> None:
        """Make one step on the gradient of `loss`."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()


class Cosine(torch.optim.lr_scheduler.LambdaLR):
    """Linear warm-up over the first 3 % of `steps`, then a cosine to 2 % of the peak."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        def factor(step: int) -> float:
            warm = max(1.0, 0.03 * steps)
            return min((step + 1) / warm, 0.51 + 0.49 * math.cos(math.pi * min(step / steps, 1.0)))

        super().__init__(optimizer, factor)


class Average:
    """Exponential moving average of the trainable parameters of `module`; sharded where they are.

    Args:
        decay: of the average, in [0, 1); after n updates it is at most n / (n + 10).
    """

    def __init__(self, module: nn.Module, decay: float = 0.995) -> None:
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._means = {name: p.detach().clone() for name, p in self._trained.items()}
        self._decay, self._updates = decay, torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current parameters."""
        self._updates += 1
        updates = int(self._updates)
        decay = min(self._decay, updates / (updates + 10))
        for name, p in self._trained.items():
            self._means[name].lerp_(p.detach(), 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the parameters to their averages."""
        for name, p in self._trained.items():
            p.copy_(self._means[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters are their averages within the block, and afterwards as before."""
        kept = {name: p.detach().clone() for name, p in self._trained.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._trained.items():
                    p.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        return {"means": self._means, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means, self._updates = state["means"], state["updates"]


class Resume:
    """Saves the state of a run every 100 steps, so that an interrupted run continues from there.

    Args:
        path: the file, removed when the run is done; None: nothing is saved.
    """

    def __init__(self, path: Path | None, parts: Sequence[nn.Module | Average], descent: Descent) -> None:
        self._path, self._parts, self._descent = path, parts, descent

    def steps(self, count: int, progress: Callable[[float], None], every: int = 100) -> Iterator[int]:
        """The remaining steps of `count`; `progress` is called with NaN for those done before."""
        start = self._load()
        for _ in range(start):
            progress(float("nan"))
        for step in range(start, count):
            if self._path and step > start and step % every == 0:
                self._save(step)
            yield step
        if self._path:
            self._path.unlink(missing_ok=True)

    def _load(self) -> int:
        if not (self._path and self._path.exists()):
            return 0
        state = torch.load(self._path, weights_only=True)
        for part, values in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(values)
        self._descent.optimizer.load_state_dict(state["optimizer"])
        self._descent.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        return int(state["step"])

    def _save(self, step: int) -> None:
        assert self._path
        state = {
            "step": step,
            "parts": [part.state_dict() for part in self._parts],
            "optimizer": self._descent.optimizer.state_dict(),
            "schedule": self._descent.schedule.state_dict(),
            "rng": torch.get_rng_state(),
        }
        with new_file(self._path) as path:
            torch.save(state, path)
