"""Training of a stage apart from its loss: updates, ranks, checkpoints, validation."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from lipstream.atomic import replace_folder, write_file
from lipstream.errors import CheckpointError
from lipstream_models import CausalDiT
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..optim import Average
from . import parallel
from .log import Log, peak_memory
from .mixture import Mixture
from .noise import Noise
from .recipe import Recipe
from .rollout import Batch
from .stages import Losses, Networks

_KEPT = 2  # checkpoints


ShowHeldOut = Callable[[CausalDiT, int], tuple[dict[str, float], dict[str, Any]]]


class Data(Protocol):
    """Clips by number."""

    def __len__(self) -> int: ...

    def batch(self, clips: tuple[int, ...]) -> Batch: ...


class Trainer:
    """One stage, on this rank.

    The clips of an update, and every number drawn for them, follow from the recipe's seed and the update's number
    alone. So a run continues from any checkpoint as if it had not stopped, and ranks are equivalent to accumulation.

    Args:
        order: the clip of each sample; default: every epoch has all clips of `data`, in a new order.
        out: folder of checkpoints and log; the run continues from the last checkpoint in it.
        held_out: clips of `data` that `order` does not use. Every `validate_every` updates, and after the last, the log
            has the losses on them, with the same random numbers each time. Every rank computes all of them.
        show_held_out: called after them, on all ranks, with the model and the number of updates; the numbers and the
            pictures (uint8 [H, W, 3]) that it returns by name are logged.
        loggers: names, see `log.logger_names`.
        sample: called every `sample_every` updates, on all ranks, with the model and the number of updates; the
            pictures it returns (uint8 [H, W, 3] by name) are logged.
    """

    def __init__(
        self,
        recipe: Recipe,
        networks: Networks,
        data: Data,
        out: Path,
        *,
        order: Mixture | None = None,
        held_out: Sequence[int] = (),
        validate_every: int = 100,
        show_held_out: ShowHeldOut | None = None,
        loggers: Sequence[str] = ("tensorboard",),
        device: torch.device | None = None,
        sample: Callable[[CausalDiT, int], dict[str, Any]] | None = None,
    ) -> None:
        self.recipe, self.nets, self._data, self._out = recipe, networks, data, out
        self._device = device or torch.device("cpu")
        self._sample, self._show_held_out = sample, show_held_out
        self._held_out, self._validate_every, self._loggers = held_out, validate_every, loggers
        self._losses = Losses(networks, recipe)
        over = parallel.mesh(self._device)
        trained = [networks.model] + ([networks.critic] if networks.critic is not None else [])
        for net in [*trained, *([networks.teacher] if networks.teacher is not None else [])]:
            net.requires_grad_(net in trained)
            if net in trained and recipe.lora:
                adapters = networks.adapters if net is networks.model else networks.critic_adapters
                parallel.adapt(net, recipe.lora, recipe.lora_alpha, adapters)
            net.checkpointing = recipe.checkpointing and net in trained
            net.to(self._device)
            parallel.shard(net, over, recipe.precision)
        networks.text, networks.negative = networks.text.to(self._device), networks.negative.to(self._device)
        self._model = _Optimised(networks.model, recipe.rate, recipe.clip, recipe)
        self._critic = (
            _Optimised(networks.critic, recipe.critic_rate, recipe.critic_clip, recipe)
            if networks.critic is not None
            else None
        )
        self._average = Average(networks.model, recipe.average) if recipe.average else None
        self.iteration = 0
        self._order = order or Mixture([len(data)], seed=recipe.seed)
        self._resume()

    def run(self, until: int | None = None, progress: Callable[[float], None] = lambda loss: None) -> None:
        """Update until all of the recipe's updates are done, or `until`; save checkpoints, also at the end.

        Args:
            progress: called with the loss after each update.
        """
        recipe = self.recipe
        end = min(until or recipe.updates, recipe.updates)
        clips = recipe.batch * recipe.accumulate * parallel.world()
        with Log(self._out, recipe.fields(), self._loggers) as log:
            while self.iteration < end:
                started = time.monotonic()
                numbers = self._update()
                self.iteration += 1
                seconds = time.monotonic() - started
                memory = peak_memory(self._device)
                numbers |= {"seconds": seconds, "clips_per_second": clips / seconds, "peak_memory_gib": memory}
                if self._held_out and (self.iteration % self._validate_every == 0 or self.iteration == end):
                    numbers |= self._validate()
                    if self._show_held_out:
                        more, pictures = self._show_held_out(self.nets.model, self.iteration)
                        numbers |= more
                        log.pictures(self.iteration, pictures)
                log.numbers(self.iteration, numbers)
                progress(numbers["loss"])
                if self._sample and recipe.sample_every and self.iteration % recipe.sample_every == 0:
                    pictures = self._sample(self.nets.model, self.iteration)
                    log.pictures(self.iteration, pictures)
                if self.iteration % recipe.save_every == 0 or self.iteration == end:
                    self.save()

    def clips(self, number: int) -> int:
        """The clip of the `number`-th sample of the run."""
        return self._order.clip(number)

    def weights(self, *, averaged: bool = True) -> dict[str, Tensor]:
        """The model's weights, adapters merged, on every rank.

        Args:
            averaged: the moving average, where there is one; else the weights after the last update.
        """
        with self._average.in_place() if self._average and averaged else contextlib.nullcontext():
            return {name: parallel.whole(x).cpu().clone() for name, x in parallel.merged(self.nets.model).items()}

    def delta(self) -> dict[str, Tensor]:
        """The model's adapters and what is trained beside them, as `weights` otherwise. On every rank."""
        recipe = self.recipe
        with self._average.in_place() if self._average else contextlib.nullcontext():
            found = parallel.delta(self.nets.model, recipe.lora, recipe.lora_alpha)
            return {name: parallel.whole(x).cpu().clone() for name, x in found.items()}

    def _validate(self) -> dict[str, float]:
        """Losses on the clips held out, means over them; in self_forcing of the critic and the student."""
        sums: dict[str, float] = {}
        size, centre = self.recipe.batch, self._losses.reward_mean.value.clone()
        for part, first in enumerate(range(0, len(self._held_out), size)):
            clips = tuple(self._held_out[first : first + size])
            batch = self._data.batch(clips).to(self._device)
            noise = Noise(self.recipe.seed, 0, range(first, first + len(clips)), "validation")
            with torch.no_grad(), parallel.products(self._device, self.recipe.precision):
                if self.recipe.stage == "self_forcing":
                    loss = self._losses.critic(batch, noise, part).mean()
                    value, more = self._losses.student(batch, noise, part)
                    found = {"loss": loss, "student/loss": value, **more}
                else:
                    loss, more = self._simple(batch, noise, part)
                    found = {"loss": loss, **more}
            for name, x in found.items():
                sums[name] = sums.get(name, 0.0) + float(x) * len(clips) / len(self._held_out)
        self._losses.reward_mean.value.copy_(centre)  # rewards of these clips must not change the training
        return {f"validation/{name}": x for name, x in sums.items()}

    def _update(self) -> dict[str, float]:
        recipe, losses, it = self.recipe, self._losses, self.iteration
        if recipe.stage != "self_forcing":
            found = self._gradient(
                self._model, recipe.stage, lambda b, n, part: self._simple(b, n, it), recipe.accumulate
            )
            return found | self._step(self._model)
        assert self._critic is not None
        turn = (it + recipe.count_from) % recipe.update_ratio == 0
        share = 1 if turn and not recipe.exact_critic else recipe.accumulate
        critic = self._gradient(
            self._critic, "critic", lambda b, n, part: (losses.critic(b, n, it, part).mean(), {}), share
        )
        if recipe.critic_first or not turn:
            critic |= self._step(self._critic)
        student: dict[str, float] = {}
        if turn:
            student = self._gradient(
                self._model, "student", lambda b, n, part: losses.student(b, n, it, part), recipe.accumulate
            )
            student |= self._step(self._model)
            if not recipe.critic_first:
                critic |= self._step(self._critic)
            losses.reward_mean.end_update(student.get("student/sync_c", math.nan))
        numbers = {f"critic/{name}": x for name, x in critic.items()} | {"loss": critic["loss"]}
        return numbers | {name if "/" in name else f"student/{name}": x for name, x in student.items()}

    def _simple(self, batch: Batch, noise: Noise, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.recipe.stage == "teacher":
            return self._losses.teacher(batch, noise).mean(), {}
        return self._losses.forcing(batch, noise, iteration).mean(), {}

    def _gradient(
        self,
        what: _Optimised,
        use: str,
        loss: Callable[[Batch, Noise, int], tuple[Tensor, dict[str, Tensor]]],
        share: int,
    ) -> dict[str, float]:
        """The gradient of `accumulate` batches; each loss is divided by `share`. `loss` gets the batch's number."""
        recipe = self.recipe
        ranks, size = parallel.world(), recipe.batch
        sums: dict[str, Tensor] = {}
        for part in range(recipe.accumulate):
            if ranks > 1:
                what.module.set_requires_gradient_sync(part == recipe.accumulate - 1)
            first = (part * ranks + parallel.rank()) * size
            samples = range(first, first + size)
            base = self.iteration * recipe.accumulate * ranks * size
            batch = self._data.batch(tuple(self.clips(base + sample) for sample in samples)).to(self._device)
            noise = Noise(recipe.seed, self.iteration, list(samples), use)
            with parallel.products(self._device, recipe.precision):
                value, more = loss(batch, noise, part)
            (value / share).backward()  # type: ignore[no-untyped-call]
            for name, x in {"loss": value, **more}.items():
                sums[name] = sums.get(name, 0) + x.detach().float() / recipe.accumulate
        return {name: float(parallel.mean_over_ranks(x)) for name, x in sums.items()}

    def _step(self, what: _Optimised) -> dict[str, float]:
        """Update the weights from the gradient; the moving average, too."""
        norm, skipped = what.step(self.iteration)
        if self._average and what is self._model:
            self._average.update()
        return {"gradient": norm, "skipped": float(skipped), "rate": what.rate(self.iteration)}

    def save(self) -> None:
        """Write a checkpoint of this update, atomically."""
        target = self._out / f"step-{self.iteration:07d}"
        partial = target.with_suffix(".part")
        if parallel.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            self._out.mkdir(parents=True, exist_ok=True)
        _barrier()
        save(self._state(), checkpoint_id=str(partial))
        _barrier()
        if parallel.rank() == 0:
            write_file(partial / "recipe.json", (json.dumps(self.recipe.fields(), indent=1) + "\n").encode())
            write_file(partial / "data.json", (json.dumps(self._order.fields()) + "\n").encode())
            replace_folder(partial, target)
            for old in checkpoints(self._out)[:-_KEPT]:
                if not self._is_kept(old):
                    shutil.rmtree(old)
        _barrier()

    def _is_kept(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one of those that are kept for good."""
        every = self.recipe.keep_every * self.recipe.save_every
        return every > 0 and int(checkpoint.name.removeprefix("step-")) % every == 0

    def _resume(self) -> None:
        found = checkpoints(self._out)
        if not found:
            return
        before = json.loads((found[-1] / "recipe.json").read_text())
        now = json.loads(json.dumps(self.recipe.fields()))
        free = ("iterations", "save_every", "keep_every", "sample_every")  # a run may be made longer
        if other := [name for name in now if name not in free and before.get(name) != now[name]]:
            raise CheckpointError(
                f"{found[-1]} is of another recipe: {', '.join(f'{n} {before.get(n)}' for n in other)}",
                expected=", ".join(f"{n} {now[n]}" for n in other),
                fix="another folder, or the same recipe",
            )
        path = found[-1] / "data.json"
        data = json.loads(path.read_text()) if path.is_file() else "not recorded, by an older version"
        if data != self._order.fields():
            raise CheckpointError(
                f"{found[-1]} is of other data: {data}",
                expected=str(self._order.fields()),
                fix=f"the same --data, or another folder with --init {self._out}",
            )
        state = self._state()
        load(state, checkpoint_id=str(found[-1]))
        self.iteration = int(state["iteration"])
        self._model.load(state["model"])
        if self._critic is not None:
            self._critic.load(state["critic"])
        if self._average:
            self._average.load_state_dict(state["average"])
        if self.recipe.reward == "centred":
            self._losses.reward_mean.value.copy_(state[self._reward_key])

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"iteration": torch.tensor(self.iteration), "model": self._model.state()}
        if self._critic is not None:
            state["critic"] = self._critic.state()
        if self._average:
            state["average"] = self._average.state_dict()
        if self.recipe.reward == "centred":
            state[self._reward_key] = self._losses.reward_mean.value
        return state

    @property
    def _reward_key(self) -> str:
        """Name of the reward's mean in a checkpoint: each rank has its own if it is of the rank's batches."""
        return "reward_mean" + (f"_{parallel.rank()}" if self.recipe.reward_centre == "batches" else "")


def checkpoints(out: Path) -> list[Path]:
    """The finished checkpoints in `out`, the oldest first."""
    return sorted(path for path in out.glob("step-*") if path.suffix != ".part")


class _Optimised:
    """A network and its AdamW.

    Args:
        clip: largest norm of the gradient; 0: any.
    """

    def __init__(self, module: CausalDiT, rate: float, clip: float, recipe: Recipe) -> None:
        self.module: Any = module
        self._recipe, self._rate, self._clip = recipe, rate, clip
        self._parameters = parallel.parameters(module)
        betas = (recipe.beta1, recipe.beta2)
        self._optimizer = torch.optim.AdamW(self._parameters, rate, betas=betas, weight_decay=recipe.weight_decay)
        self._options = StateDictOptions(ignore_frozen_params=True)

    def rate(self, iteration: int) -> float:
        """The learning rate of an update."""
        return self._rate * min(1.0, (iteration + 1) / (self._recipe.warm_up + 1))

    def step(self, iteration: int) -> tuple[float, bool]:
        """Update, and clear the gradient; returns its norm, and whether the update was skipped as it was not finite."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(iteration)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        skipped = not torch.isfinite(parallel.whole(norm))
        if skipped and self._clip and self._recipe.non_finite == "zero":
            for gradient in gradients:
                parallel.part(gradient).nan_to_num_()
            norm, skipped = get_total_norm(gradients), False  # the norm is infinite if one was: the gradient becomes 0
        if not skipped:
            if self._clip:
                clip_grads_with_norm_(self._parameters, self._clip, norm)
            self._optimizer.step()
        self._optimizer.zero_grad()
        return float(parallel.whole(norm)), skipped

    def state(self) -> dict[str, Any]:
        return {
            "weights": get_model_state_dict(self.module, options=self._options),
            "optimizer": get_optimizer_state_dict(self.module, self._optimizer, options=self._options),
        }

    def load(self, state: dict[str, Any]) -> None:
        loose = StateDictOptions(ignore_frozen_params=True, strict=False)
        set_model_state_dict(self.module, state["weights"], options=loose)
        set_optimizer_state_dict(self.module, self._optimizer, state["optimizer"], options=self._options)


def _barrier() -> None:
    if parallel.world() > 1:
        dist.barrier()
