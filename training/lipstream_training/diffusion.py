"""Train the causal student on latents, in one stage: diffusion forcing, then on its own output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lipstream_models import CausalDiT, ClipAttention, StudentConfig
from lipstream_models.condition import assemble_condition
from lipstream_models.schedule import add_noise, predict_x0
from torch import Tensor, nn
from torch.nn import functional as F

from .codec import border_error, picture_loss
from .critic import Adversary
from .optim import Average, Descent, Resume


@dataclass(frozen=True)
class Latents:
    """Encoded clips.

    Attributes:
        target: latents to generate, [N, C, F, h, w].
        first: the first frame of the video that the clip is from, with any mouth, [N, C, 1, h, w].
        masked: the driving video with the mouth hidden, [N, C, F, h, w].
        sequence: what goes into the last channels of the condition, [N, C, F, h, w].
        audio: features of the target's speech, [N, 4 F, A]; those of the first frame four times.
        mouth: the shape of the target's mouth, [N, 4 F, 4].
        mask: latent mask [h, w], 1 = keep.
    """

    target: Tensor
    first: Tensor
    masked: Tensor
    sequence: Tensor
    audio: Tensor
    mouth: Tensor
    mask: Tensor

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Target, condition [B, 3 C + 1, F, h, w], audio and mouth of the clips `rows`."""
        target = self.target[rows].float()
        first, masked, sequence = (x[rows].float() for x in (self.first, self.masked, self.sequence))
        condition = assemble_condition(first, self.mask, masked, sequence)
        return target, condition, self.audio[rows].float(), self.mouth[rows].float()


@dataclass(frozen=True)
class StudentRecipe:
    """Settings of the training: `steps` batches of `batch` clips.

    Attributes:
        outside: weight of the loss where the picture is kept, against 1 in the mouth region; lips: where lips move.
        own_work: last share of the steps, in which the second pass and the context start from the student's own output.
        context_noise: noise up to this level is added to clean chunks, since in a stream they are the student's own
            output.
        audio_noise: on the audio features.
        probe: weight of the loss of `MouthProbe`; 0: the shape of the mouth is not known.
        edges: weight of the loss on differences between neighbouring latents, which is large for a blur.
        pixels: weight of `picture_loss` and `border_error` of the decoded lips, if there is a decoder; of it, `detail`
            and `grid` are the weights of the local edge strength and of the borders of tokens. `pictures` latent frames
            of a batch are decoded.
        sharp: gradient of the loss of an `Adversary` on the decoded lips, over that of all other losses, from the share
            `sharp_from` of the steps on. Without it the student learns the mean of all lips that a sound allows.
    """

    steps: int
    batch: int = 8
    learning_rate: float = 1e-3
    outside: float = 0.1
    lips: float = 2.0
    own_work: float = 0.3
    context_noise: float = 0.3
    audio_noise: float = 0.05
    probe: float = 1.0
    edges: float = 0.5
    pixels: float = 2.0
    detail: float = 2.0
    grid: float = 1.0
    pictures: int = 24
    sharp: float = 0.0
    sharp_from: float = 0.5


@torch.no_grad()
def start_as_identity(model: CausalDiT, level: float = 8.0, constants: int = 32) -> None:
    """Make the untrained `model` predict the first frame (the first channels of the condition) as clean latent.

    A student with a `Refinement` does so by itself. Without one: at t near 1 the velocity towards that frame is the
    noisy latent minus the frame. One channel per value of a patch carries that difference from the embedding to the
    head; `constants` channels of plus and minus `level` keep the norm before the head from rescaling it; audio is added
    to the other channels. Time and prompt start with small weights.
    """
    for layer in (model.time_embedding[-1], *(block.cross_attn.o for block in model.layers)):
        for parameter in layer.parameters():
            parameter.mul_(0.05)
    config = model.config
    if config.refine:
        return
    c, patch = config.latent_channels, config.patch
    carried = c * patch[1] * patch[2]
    assert carried + constants <= config.dim, "the student is too narrow to start as an identity"
    embedding, head = model.patch_embedding, model.head.head
    assert embedding.bias is not None
    embedding.weight[: carried + constants] = 0
    embedding.bias[: carried + constants] = 0
    for y in range(patch[1]):
        for x in range(patch[2]):
            for channel in range(c):
                token = (y * patch[2] + x) * c + channel
                embedding.weight[token, channel, 0, y, x] = 1
                embedding.weight[token, c + channel, 0, y, x] = -1
    embedding.bias[carried : carried + constants : 2] = level
    embedding.bias[carried + 1 : carried + constants : 2] = -level
    variance = (constants * level**2 + carried * 3.0) / config.dim  # 3: of the difference, about
    head.weight.zero_()
    head.bias.zero_()
    head.weight[range(carried), range(carried)] = variance**0.5
    model.head.modulation.zero_()
    for layer in model.audio_cond_projs:
        for parameter in layer.parameters():
            parameter[: carried + constants] = 0


class MouthProbe(nn.Module):
    """Auxiliary loss: a linear layer predicts the mouth's shape from the mean token after one of the blocks.

    It makes the student learn the relation of sound and mouth within a hundred steps instead of late in training. It is
    not part of the student.
    """

    def __init__(self, model: CausalDiT, block: int = 5) -> None:
        super().__init__()
        block = min(block, len(model.blocks) - 1)
        self.read = nn.Linear(model.config.dim, 4 * 4)
        self._seen: Tensor | None = None
        model.blocks[block].register_forward_hook(self._record)

    def _record(self, block: nn.Module, inputs: object, output: Tensor) -> None:
        self._seen = output

    def forward(self, mouth: Tensor) -> Tensor:
        """Mean squared error of `mouth` [B, 4 F, 4] predicted from the student's last forward pass."""
        assert self._seen is not None, "the student has not run"
        found = torch.unflatten(self.read(self._seen.float().mean(2)), 2, (4, 4)).flatten(1, 2)
        self._seen = None
        return F.mse_loss(found, mouth)


def train_student(
    model: CausalDiT,
    data: Latents,
    text: Tensor,
    recipe: StudentRecipe,
    *,
    seed: int,
    progress: Callable[[float], None],
    partial: Path | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> CausalDiT:
    """Train what requires gradients of `model`, set it to the moving average of its weights, and return it.

    The loss on the noisy chunks, of x0_pred - x0, is ``0.25 square + 0.5 absolute + edges * neighbour differences``,
    since a squared error alone leads to the mean of all possible results, a blur. A clip is a clean beginning of 0 or
    more chunks, then noisy chunks, each at one of the schedule's times.

    Args:
        progress: called with the loss after each step, also of those that a run before this one has done.
        partial: file for the state of an unfinished run, from which the next one continues.
        decode: latents [N, C, h, w] -> pictures [N, 4, 3, s h, s w] in [0, 1], for the loss on pixels.
    """
    torch.manual_seed(seed)
    config = model.config
    frames, chunk = data.target.shape[2], config.chunk_frames
    attend = ClipAttention(config, frames, causal=True, dtype=torch.bfloat16)
    times = torch.tensor(config.t_list[:-1])
    weight = torch.where(data.mask > 0.5, recipe.outside, 1.0)
    weight = weight * torch.where(lip_region(config.latent_size), recipe.lips, 1.0)
    weight = weight / weight.mean()
    probe = MouthProbe(model)
    average = Average(model)
    descent = Descent([model, probe], recipe.steps, recipe.learning_rate)
    last = model.refinement.leave if model.refinement is not None else model.head.head
    adversary = None
    if decode is not None and recipe.sharp:
        judged = max(1, round((1 - recipe.sharp_from) * recipe.steps))
        adversary = Adversary(last.weight, recipe.sharp, judged, recipe.learning_rate, halvings=1)
    resume = Resume(partial, [model, probe, average, *([adversary] if adversary else [])], descent)

    def run(x: Tensor, condition: Tensor, audio: Tensor, t: Tensor) -> Tensor:
        return predict_x0(x, velocity(model, x, condition, audio, t, text, attend), t[:, None, :, None, None])

    for step in resume.steps(recipe.steps, progress):
        target, condition, audio, mouth = data.batch(torch.randint(len(data.target), (recipe.batch,)))
        audio = audio + recipe.audio_noise * torch.randn_like(audio)
        chunks = frames // chunk
        clean = torch.arange(chunks) < torch.randint(-1, chunks, (recipe.batch, 1))
        chosen = times[torch.randint(len(times), (recipe.batch, chunks))]
        t = (chosen * ~clean).repeat_interleave(chunk, dim=1)
        time = t[:, None, :, None, None]
        known = target
        if step >= (1 - recipe.own_work) * recipe.steps:
            with torch.no_grad():
                known = run(torch.randn_like(target), condition, audio, torch.full_like(t, config.t_list[0]))
        # The first pass starts from noise alone, later ones from the x0 of the pass before.
        start = torch.where(time == config.t_list[0], target, known)
        x = add_noise(start, torch.randn_like(target), time)
        rough = recipe.context_noise * torch.rand(recipe.batch, 1, 1, 1, 1)
        x = torch.where(time == 0, x + rough * torch.randn_like(x), x)
        found = run(x, condition, audio, t)
        error = found - target
        noisy = (time > 0).float() * weight
        across, down = error.diff(dim=-1).abs(), error.diff(dim=-2).abs()
        edges = 0.5 * (mean(across, noisy[..., 1:]) + mean(down, noisy[..., 1:, :]))
        loss = 0.25 * mean(error.square(), noisy) + 0.5 * mean(error.abs(), noisy) + recipe.edges * edges
        made = wanted = None
        if decode is not None:
            shown = (t > 0).nonzero()
            shown = shown[torch.randperm(len(shown))[: recipe.pictures]]
            made, wanted = (_lips(config, decode, x, shown) for x in (found, target))
            borders = border_error(made, wanted, config.spatial * config.patch[1])
            picture = picture_loss(made, wanted, detail=recipe.detail) + recipe.grid * borders
            loss = loss + recipe.pixels * picture
        progress(loss.item())
        probed = recipe.probe * probe(mouth) if recipe.probe else 0.0
        if adversary and made is not None and wanted is not None and step >= recipe.sharp_from * recipe.steps:
            # Two of the four frames of each latent: neighbours are alike.
            made, wanted = (x[:, ::2].flatten(0, 1) for x in (made, wanted))
            descent.step(loss + probed + adversary.loss(loss, made))
            adversary.learn(wanted, made)
        else:
            descent.step(loss + probed)
        average.update()
    average.apply()
    return model.eval().requires_grad_(False)


def _lips(config: StudentConfig, decode: Callable[[Tensor], Tensor], latents: Tensor, shown: Tensor) -> Tensor:
    """Pictures [n, 4, 3, H, W] of the surroundings of the lips, of the latent frames `shown` (clip, frame) [n, 2]."""
    height, width = config.latent_size
    down, across = slice(height // 8, 3 * height // 4), slice(width // 8, width - width // 8)  # whole tokens
    return decode(latents[shown[:, 0], :, shown[:, 1]][..., down, across])


def velocity(
    model: CausalDiT, x: Tensor, condition: Tensor, audio: Tensor, t: Tensor, text: Tensor, attend: ClipAttention
) -> Tensor:
    """Velocity [B, C, F, h, w] of whole clips, all with the prompt `text`; run in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        kv = [(k.expand(len(x), -1, -1, -1), v.expand(len(x), -1, -1, -1)) for k, v in model.text_kv(text[None])]
        found: Tensor = model(x, condition, audio, t, kv, attend)
    return found.float()


def mean(x: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of `x`; `weight` broadcasts against it. 0 where nothing has weight."""
    weight = weight.expand_as(x)
    return (weight * x).sum() / weight.sum().clamp_min(1)


def lip_region(size: tuple[int, int]) -> Tensor:
    """Where lips move in a latent frame, bool [h, w]: the middle, 8 of 16 high and 10 of 16 wide."""
    rows, columns = (torch.arange(n) / n for n in size)
    return ((rows >= 0.25) & (rows < 0.75))[:, None] & ((columns >= 0.1875) & (columns < 0.8125))


@torch.no_grad()
def generate_clips(model: CausalDiT, data: Latents, text: Tensor, rows: Tensor, *, seed: int) -> Tensor:
    """Latents [B, C, F, h, w] that `model` generates for the clips `rows`, with its own output as context.

    All passes, in bfloat16, without gradients or a K/V ring: every pass recomputes the chunks before it.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    _, condition, audio, _ = data.batch(rows)
    frames, chunk = condition.shape[2], config.chunk_frames
    made = torch.zeros(len(rows), config.latent_channels, frames, *config.latent_size)
    for end in range(chunk, frames + 1, chunk):
        attend = ClipAttention(config, end, causal=True, dtype=torch.bfloat16)
        now = slice(end - chunk, end)
        for step, t in enumerate(config.t_list[:-1]):
            noise = torch.randn(made[:, :, now].shape, generator=generator)
            x = made[:, :, :end].clone()
            x[:, :, now] = noise if step == 0 else add_noise(made[:, :, now], noise, t)
            time = torch.zeros(len(rows), end)
            time[:, now] = t
            before = audio[:, : config.temporal * end]
            found = velocity(model, x, condition[:, :, :end], before, time, text, attend)
            made[:, :, now] = predict_x0(x[:, :, now], found[:, :, now], t)
    return made
