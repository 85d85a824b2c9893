"""The loss of each stage: the paper's recipe, without optimisers, ranks and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from lipstream_models import CausalDiT, ClipAttention
from lipstream_models.released.student import Adapters
from lipstream_models.schedule import add_noise, predict_x0
from torch import Tensor

from .losses import RewardMean, distribution_matching, guided, per_sample, rewarded, score_times
from .noise import Noise, shared_integer
from .recipe import Recipe
from .rollout import Batch, TextKV, roll_out

Judge = Callable[[Tensor, tuple[int, ...]], Tensor]
"""(generated latents [B, C, F, h, w], numbers of the clips) -> SyncNet's confidence [B]."""


@dataclass
class Networks:
    """The networks of a stage.

    Attributes:
        model: the trained one. teacher: frozen, for self_forcing. critic: the fake score, also trained there.
        text, negative: prompt embeddings [rows, width]; the second one for the unconditional pass.
        judge: computes the reward.
        adapters, critic_adapters: LoRA that the training of the two goes on with; it is not merged into their weights.
    """

    model: CausalDiT
    text: Tensor
    negative: Tensor
    teacher: CausalDiT | None = None
    critic: CausalDiT | None = None
    judge: Judge | None = None
    adapters: Adapters | None = None
    critic_adapters: Adapters | None = None

    def text_kv(self, net: CausalDiT, rows: int, *, negative: Tensor | None = None) -> TextKV:
        """K and V of the prompt for a batch; where `negative` bool [B] is set, of the negative one."""
        text = self.text[None].expand(rows, -1, -1)
        if negative is not None:
            text = torch.where(negative.view(-1, 1, 1).to(text.device), self.negative[None], text)
        elif rows > 1:
            return [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in net.text_kv(self.text[None])]
        return net.text_kv(text)


class Losses:
    """Losses of a batch. All randomness comes from `Noise`.

    Attributes:
        reward_mean: of the reward `centred`; the only state.
    """

    def __init__(self, networks: Networks, recipe: Recipe) -> None:
        self._nets, self._recipe = networks, recipe
        self.reward_mean = RewardMean(recipe)
        self._attention: dict[tuple[int, int, int], ClipAttention] = {}

    def teacher(self, batch: Batch, noise: Noise) -> Tensor:
        """Flow matching: mean (v - (eps - x0))^2 [B], some clips without audio and prompt."""
        recipe, nets = self._recipe, self._nets
        t = score_times(noise.uniform(), recipe.time_shift).to(batch.target.device)
        dropped = (noise.uniform() < recipe.drop).to(batch.target.device)
        eps = noise.normal(batch.target)
        x = add_noise(batch.target, eps, t.view(-1, 1, 1, 1, 1))
        audio = torch.where(dropped.view(-1, 1, 1), 0.0, batch.audio)
        kv = nets.text_kv(nets.model, len(x), negative=dropped)
        v = nets.model(x, batch.condition, audio, self._each(t, batch), kv, self._whole(nets.model, batch))
        return per_sample((v.float() - (eps - batch.target)).square())

    def forcing(self, batch: Batch, noise: Noise, iteration: int) -> Tensor:
        """Diffusion forcing: each chunk at its own time from the student's list, clean ones included.

        0.5 mean (x0_pred - x0)^2 [B]. One window for the batch: that of the update, or with `window_per_batch` of its
        first sample.
        """
        recipe, nets = self._recipe, self._nets
        config = nets.model.config
        c, frames = config.chunk_frames, batch.target.shape[2]
        chosen = noise.integers(len(config.t_list), frames // c)
        t = torch.tensor(config.t_list)[chosen].repeat_interleave(c, dim=1).to(batch.target.device)
        x = add_noise(batch.target, noise.normal(batch.target), t[:, None, :, None, None])
        use = f"window of {noise.samples[0]}" if recipe.window_per_batch else "window"
        window, sink = recipe.windows[shared_integer(recipe.seed, iteration, len(recipe.windows), use)]
        attend = self._attend(nets.model, batch, window, sink)
        v = nets.model(x, batch.condition, batch.audio, t, nets.text_kv(nets.model, len(x)), attend)
        x0 = predict_x0(x, v.float(), t[:, None, :, None, None])
        return 0.5 * per_sample((x0 - batch.target).square())

    def critic(self, batch: Batch, noise: Noise, iteration: int, part: int = 0) -> Tensor:
        """The fake score on the student's output: mean (f - g)^2 [B].

        `part`: which of the accumulated batches it is.
        """
        nets = self._nets
        assert nets.critic is not None
        with torch.no_grad():
            g = self._generated(batch, noise, iteration, part, gradient=False)
        t = score_times(noise.uniform(), self._recipe.time_shift).to(g.device)
        x = add_noise(g, noise.normal(g), t.view(-1, 1, 1, 1, 1))
        f = self._x0(nets.critic, x, batch, batch.audio, t, nets.text_kv(nets.critic, len(x)))
        return per_sample((f - g).square())

    def student(self, batch: Batch, noise: Noise, iteration: int, part: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Distribution matching on the student's output, weighted by the reward: the loss, and numbers for the log.

        `part`: which of the accumulated batches it is.
        """
        recipe, nets = self._recipe, self._nets
        assert nets.critic is not None
        assert nets.teacher is not None
        g = self._generated(batch, noise, iteration, part, gradient=True)
        with torch.no_grad():
            t = score_times(noise.uniform(), recipe.time_shift).to(g.device)
            x = add_noise(g, noise.normal(g), t.view(-1, 1, 1, 1, 1))
            f = self._x0(nets.critic, x, batch, batch.audio, t, nets.text_kv(nets.critic, len(x)))
            teacher = self.teacher_x0(x, batch, t)
            rewards = nets.judge(g, batch.clips) if nets.judge and recipe.reward != "none" else None
        losses = distribution_matching(g, f, teacher)
        numbers = {"student/gap": per_sample((f - teacher).square()).mean(), "student/matching": losses.detach().mean()}
        centre = None
        if rewards is not None:
            numbers["student/sync_c"] = rewards.mean()
            centre = self.reward_mean.centre(rewards) if recipe.reward == "centred" else None
        return rewarded(losses, rewards, recipe, centre), numbers

    def teacher_x0(self, x: Tensor, batch: Batch, t: Tensor) -> Tensor:
        """The teacher's x0 of x at times t [B], guided inside the gate. Both passes always run."""
        nets = self._nets
        assert nets.teacher is not None
        rows = len(x)
        without = torch.ones(rows, dtype=torch.bool)
        sure = self._x0(nets.teacher, x, batch, batch.audio, t, nets.text_kv(nets.teacher, rows))
        silence = torch.zeros_like(batch.audio)
        free = self._x0(nets.teacher, x, batch, silence, t, nets.text_kv(nets.teacher, rows, negative=without))
        return guided(sure, free, t, self._recipe)

    def _generated(self, batch: Batch, noise: Noise, iteration: int, part: int, *, gradient: bool) -> Tensor:
        """A rollout that ends after a step that all ranks share: of the update, or of this part of it."""
        recipe, nets = self._recipe, self._nets
        steps = len(nets.model.config.t_list) - 1
        use = "student exit" if gradient else "critic exit"
        if recipe.exit_per_batch:
            use += f" of part {part}"
        exit_step = shared_integer(recipe.seed, iteration, steps, use)
        kv = nets.text_kv(nets.model, len(batch.target))
        cleared = recipe.kv_cleared_before_backward
        return roll_out(nets.model, batch, kv, noise.normal, exit_step=exit_step, gradient=gradient, kv_cleared=cleared)

    def _x0(self, net: CausalDiT, x: Tensor, batch: Batch, audio: Tensor, t: Tensor, kv: TextKV) -> Tensor:
        v = net(x, batch.condition, audio, self._each(t, batch), kv, self._whole(net, batch))
        return predict_x0(x, v.float(), t.view(-1, 1, 1, 1, 1))

    def _each(self, t: Tensor, batch: Batch) -> Tensor:
        """Times [B] -> [B, F]."""
        return t[:, None].expand(-1, batch.target.shape[2])

    def _whole(self, net: CausalDiT, batch: Batch) -> ClipAttention:
        """Bidirectional attention over the clip."""
        return self._attend(net, batch, 0, 0)

    def _attend(self, net: CausalDiT, batch: Batch, window: int, sink: int) -> ClipAttention:
        """Causal attention; bidirectional for window 0. Tables are made once."""
        frames = batch.target.shape[2]
        key = (frames, window, sink)
        if key not in self._attention:
            config = replace(net.config, window=window, sink=sink) if window else net.config
            self._attention[key] = ClipAttention(
                config, frames, causal=window > 0, sink_moves=self._recipe.sink_moves, device=batch.target.device
            )
        return self._attention[key]
