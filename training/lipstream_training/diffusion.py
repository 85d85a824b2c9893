"""Train the DiT on latents: the bidirectional teacher by flow matching, the causal student by diffusion forcing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .models import CausalDiT, ClipAttention
from .models.schedule import add_noise, predict_x0, shift_time
from .optim import Average, Cosine


@dataclass(frozen=True)
class Latents:
    """Encoded clips.

    Attributes:
        target: what is to be generated, [N, C, F, h, w].
        masked, reference: the driving video with the mouth hidden, and as it is: the same head saying something else.
        audio: features of the wanted speech, [N, 4 F, A]; those of the first frame four times.
        mask: latent mask [h, w], 1 = keep.
    """

    target: Tensor
    masked: Tensor
    reference: Tensor
    audio: Tensor
    mask: Tensor

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Target, condition [B, 3 C + 1, F, h, w] and audio of the clips `rows`."""
        target, reference = self.target[rows].float(), self.reference[rows].float()
        mask = (1 - self.mask).expand(len(rows), 1, target.shape[2], *self.mask.shape)
        first = reference[:, :, :1].expand_as(reference)
        condition = torch.cat([first, mask, self.masked[rows].float(), reference], dim=1)
        return target, condition, self.audio[rows].float()


@dataclass(frozen=True)
class DiffusionRecipe:
    """`steps` batches of `batch` clips. `outside` weighs the loss where the picture is kept, against 1 in the mouth.

    `context_noise` roughens the clean chunks that the student looks back at, since in a stream they are its own work.
    """

    steps: int
    batch: int = 8
    learning_rate: float = 1e-3
    outside: float = 0.1
    context_noise: float = 0.15


def train_teacher(
    model: CausalDiT, data: Latents, text: Tensor, recipe: DiffusionRecipe, **options: object
) -> CausalDiT:
    """Flow matching, bidirectional: one time per clip, uniform, moved towards noise by 5 as the released teacher's."""

    def times(clips: int, frames: int) -> Tensor:
        return shift_time(torch.rand(clips, 1) * 0.998 + 0.001).expand(clips, frames)

    return _train(model, data, text, recipe, times, causal=False, **options)  # type: ignore[arg-type]


def train_student(
    model: CausalDiT, data: Latents, text: Tensor, recipe: DiffusionRecipe, **options: object
) -> CausalDiT:
    """Diffusion forcing, causal: each chunk at a time of its own out of the schedule's; half of them clean."""
    t_list = torch.tensor(model.config.t_list[:-1])
    chunk = model.config.chunk_frames

    def times(clips: int, frames: int) -> Tensor:
        t = t_list[torch.randint(len(t_list), (clips, frames // chunk))]
        return (t * (torch.rand(t.shape) < 0.5)).repeat_interleave(chunk, dim=1)

    return _train(model, data, text, recipe, times, causal=True, **options)  # type: ignore[arg-type]


def _train(
    model: CausalDiT,
    data: Latents,
    text: Tensor,
    recipe: DiffusionRecipe,
    times: Callable[[int, int], Tensor],
    *,
    causal: bool,
    seed: int,
    progress: Callable[[float], None],
) -> CausalDiT:
    """The common loop: loss 0.5 (x0_pred - x0)^2. Returns the moving average of the weights."""
    torch.manual_seed(seed)
    frames = data.target.shape[2]
    attend = ClipAttention(model.config, frames, causal=causal)
    weight = torch.where(data.mask > 0.5, recipe.outside, 1.0)
    weight = weight / weight.mean()
    average = Average(model)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = Cosine(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        target, condition, audio = data.batch(torch.randint(len(data.target), (recipe.batch,)))
        t = times(recipe.batch, frames)
        time = t[:, None, :, None, None]
        x = add_noise(target, torch.randn_like(target), time)
        x = torch.where(time == 0, x + recipe.context_noise * torch.randn_like(x), x)
        with torch.autocast("cpu", torch.bfloat16):
            text_kv = [
                (k.expand(recipe.batch, -1, -1, -1), v.expand(recipe.batch, -1, -1, -1))
                for k, v in model.text_kv(text[None])
            ]
            velocity = model(x, condition, audio, t, text_kv, attend)
        error = predict_x0(x, velocity.float(), time) - target
        noisy = (time > 0).float()
        loss = 0.5 * (weight * noisy * error.square()).sum() / (noisy.sum() * target[0, :, 0].numel()).clamp_min(1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(model)
        progress(loss.item())
    return average.module  # type: ignore[return-value]
