"""Optimisation shared by all training stages."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Descent:
    """One run of `steps` steps of AdamW on `modules`: a cosine, gradients clipped at norm 1."""

    def __init__(self, modules: Iterable[nn.Module], steps: int, rate: float) -> None:
        self._parameters = [p for module in modules for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(self._parameters, rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.schedule = Cosine(self.optimizer, steps)

    def step(self, loss: Tensor) -> None:
        """Go down the gradient of `loss` by one step."""
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
    """Exponential moving average of a module's parameters, in `module`. The decay grows to `decay` with the steps."""

    def __init__(self, module: nn.Module, decay: float = 0.995) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay, self._steps = decay, 0

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self._steps = state["steps"]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self._steps += 1
        decay = min(self._decay, self._steps / (self._steps + 10))
        for mean, value in zip(self.module.parameters(), module.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


class Resume:
    """The state of a run on disk, every 100 steps, so that a run that was cut off goes on where it was.

    Args:
        path: the file; None for a run that is not kept. It is removed when the run is done.
    """

    def __init__(self, path: Path | None, parts: Sequence[nn.Module | Average], descent: Descent) -> None:
        self._path, self._parts, self._descent = path, parts, descent

    def steps(self, count: int, progress: Callable[[float], None], every: int = 100) -> Iterator[int]:
        """Steps still to be done of `count`; `progress` is called with NaN for those that were."""
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
        temporary = self._path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self._path)
