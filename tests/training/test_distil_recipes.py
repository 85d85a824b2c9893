"""The recipes `default` and `released`: each field against a small statement of what it does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lipstream.errors import ConfigError
from lipstream_evaluate.syncnet import SyncNet, load_syncnet, mfcc
from lipstream_models import STUDENTS, CausalDiT
from lipstream_models.mel import PAST_FRAMES, SAMPLES_PER_FRAME
from lipstream_models.released import load_student
from lipstream_models.rope import rotate, spatial_angles, temporal_angles, token_angles
from lipstream_training.distil import stages as distil_stages
from lipstream_training.distil.noise import Noise
from lipstream_training.distil.recipe import Recipe, base_values, load_recipe
from lipstream_training.distil.reward import SyncReward
from lipstream_training.distil.rollout import Batch, roll_out
from lipstream_training.distil.sources import load_unmerged_model
from lipstream_training.distil.stages import Losses
from lipstream_training.distil.trainer import Trainer
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from toy_distillation import CONFIG, RECIPE, Clips, networks, toy

RELEASED = replace(Recipe(**base_values("released")), student="toy", lora=0, precision="fp32", sample_every=0)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_recipe_starts_from_a_named_one(tmp_path: Path) -> None:
    default, released = load_recipe("default"), load_recipe("released")
    assert default == load_recipe(None) == Recipe()
    assert released.fields() == base_values("released")
    assert (released.critic_clip, released.non_finite, released.exact_critic) == (0.0, "zero", False)
    path = tmp_path / "r.toml"
    path.write_text('recipe = "released"\nrate = 1\nnon_finite = "skip"\n')
    found = load_recipe(path, batch="3")
    assert found == replace(released, rate=1.0, non_finite="skip", batch=3)
    path.write_text('recipe = "upstream"\n')
    with pytest.raises(ConfigError, match="upstream"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="no recipe"):
        load_recipe("relased")


class Spoiling:
    """A trainer's networks in which gradients of one parameter are spoilt at one update."""

    def __init__(self, recipe: Recipe, out: Path, value: float, spoilt: str) -> None:
        self.nets = networks(recipe)
        self.trainer = Trainer(recipe, self.nets, Clips(), out)
        self.active, self.value = False, value
        net = getattr(self.nets, spoilt)
        net.head.head.weight.register_hook(self._spoil)

    def _spoil(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        if self.active:
            gradient[0, 0] = self.value
        return gradient

    def weights(self, net: str) -> dict[str, Tensor]:
        return {name: x.detach().clone() for name, x in getattr(self.nets, net).named_parameters()}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("net", ["model", "critic"])
def test_a_default_update_that_is_not_finite_is_skipped(net: str, value: float, tmp_path: Path) -> None:
    spoiling = Spoiling(replace(RECIPE, update_ratio=1), tmp_path, value, net)
    spoiling.trainer.run(1)
    before = {name: spoiling.weights(name) for name in ("model", "critic")}
    spoiling.active = True
    spoiling.trainer.run(2)
    other = "critic" if net == "model" else "model"
    after = {name: spoiling.weights(name) for name in before}
    assert all(torch.equal(x, before[net][name]) for name, x in after[net].items())
    assert any(not torch.equal(x, before[other][name]) for name, x in after[other].items())
    spoiling.active = False
    spoiling.trainer.run(3)
    last = spoiling.weights(net)
    assert all(bool(x.isfinite().all()) for x in last.values())
    assert any(not torch.equal(x, before[net][name]) for name, x in last.items())
    prefix = "student" if net == "model" else "critic"
    assert [line[f"{prefix}/skipped"] for line in lines(tmp_path)] == [0, 1, 0]


@pytest.mark.parametrize(("value", "zero"), [(float("inf"), True), (float("nan"), False)])
def test_a_released_update_has_numbers_for_what_is_not_finite(value: float, zero: bool, tmp_path: Path) -> None:
    """Upstream's nan_to_num and clipping, then AdamW with beta1 = 0, written out for the first update."""
    recipe = replace(RECIPE, stage="forcing", non_finite="zero", clip=0.5, beta1=0.0)
    spoiling = Spoiling(recipe, tmp_path, value, "model")
    spoiling.active = True
    before = spoiling.weights("model")
    taken: dict[str, Tensor] = {}
    for name, parameter in spoiling.nets.model.named_parameters():
        parameter.register_hook(lambda g, name=name: taken.__setitem__(name, taken.get(name, 0) + g.clone()))
    spoiling.trainer.run(1)
    gradients = {name: torch.nan_to_num(g) for name, g in taken.items()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    factor = torch.clamp(recipe.clip / (norm + 1e-6), max=1)
    assert bool(factor == 0) is zero
    for name, g in gradients.items():
        g = factor * g
        step = g / (g.square().sqrt() + 1e-8)  # the moments' corrections cancel in the first update
        expected = before[name] * (1 - recipe.rate * recipe.weight_decay) - recipe.rate * step
        torch.testing.assert_close(spoiling.weights("model")[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_released_critic_is_not_clipped_and_stays_finite(value: float, tmp_path: Path) -> None:
    assert RELEASED.critic_clip == 0
    spoiling = Spoiling(
        replace(RELEASED, batch=1, accumulate=1, rate=1e-3, critic_rate=1e-3), tmp_path, value, "critic"
    )
    before = spoiling.weights("critic")
    spoiling.active = True
    spoiling.trainer.run(1)
    assert all(torch.equal(x, before[name]) for name, x in spoiling.weights("critic").items())
    spoiling.active = False
    spoiling.trainer.run(2)
    assert all(bool(x.isfinite().all()) for x in spoiling.weights("critic").values())
    assert any(not torch.equal(x, before[name]) for name, x in spoiling.weights("critic").items())


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_the_critic_has_a_clipping_of_its_own(clip: float, tmp_path: Path) -> None:
    """Its gradient at AdamW's second moment: beta1 = 0, so that the moment is (1 - beta2) g^2 after one update."""
    recipe = replace(RECIPE, critic_clip=clip, clip=1e-6)
    trainer = Trainer(recipe, networks(recipe), Clips(), tmp_path)
    trainer.run(1)
    assert trainer.nets.critic is not None
    state = trainer._critic._optimizer.state  # type: ignore[union-attr]
    squares = sum(float(state[p]["exp_avg_sq"].sum()) for p in trainer.nets.critic.parameters() if p in state)
    norm = (squares / (1 - recipe.beta2)) ** 0.5
    logged = lines(tmp_path)[0]["critic/gradient"]
    assert logged > 0.01
    assert norm == pytest.approx(clip or logged, rel=1e-3)


def straight_through(model: CausalDiT, batch: Batch, draw: Callable[[Tensor], Tensor], *, past: bool) -> Tensor:
    """A rollout of two passes written out, whose blocks have their true values, and the gradient that they have with
    the true past, or with K and V of zeros in its place."""
    config, kv = model.config, model.text_kv(prompt(model))
    spatial = spatial_angles(config.grid, config.head_dim)
    stored: list[list[tuple[Tensor, Tensor]]] = []  # per chunk, per layer: K not rotated, V
    noise, made = draw(batch.target), []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
        """Over sink 1 and the last 6 frames, numbered as in the window."""
        before = [stored[c][layer] for c in range(max(0, len(stored) - 1), len(stored))]
        if len(stored) > 1:
            before.insert(0, tuple(x[:, : config.tokens] for x in stored[0][layer]))  # type: ignore[arg-type]
        keys = torch.cat([*(factor * x for x, _ in before), k], 1)
        values = torch.cat([*(factor * x for _, x in before), v], 1)
        count = keys.shape[1] // config.tokens
        angles = token_angles(temporal_angles(torch.arange(count), config.head_dim), spatial).flatten(0, 1)[:, None]
        cos, sin = angles.cos().float(), angles.sin().float()
        own = slice(-q.shape[1], None)
        scores = torch.einsum("bnhd,bmhd->bhnm", rotate(q, cos[own], sin[own]), rotate(keys, cos, sin))
        return torch.einsum("bhnm,bmhd->bnhd", (scores / config.head_dim**0.5).softmax(-1), values)

    def velocity(x: Tensor, t: float, now: slice, keep: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        t_emb, e = model.time(torch.full(x.shape[:1] + x.shape[2:3], t))
        condition = batch.condition[:, :, now]
        audio = model.audio(batch.audio[:, 4 * now.start : 4 * now.stop])
        h = model.embed(x, condition)
        for i, block in enumerate(model.layers):
            h = h + audio[i] if i in audio else h

            def run(layer: int, factor: float, h: Tensor = h, block: Any = block) -> Tensor:
                found: Tensor = block(h, e, kv[layer], lambda q, k, v: attend(layer, q, k, v, factor))
                return found

            if keep is not None:
                inner = block.self_attention_input(h, *block.modulate(e)[:2])
                keep.append(tuple(y.detach() for y in block.self_attn.key_value(inner)))
            true, other = run(i, 1.0), run(i, 1.0 if past else 0.0)
            h = true.detach() + other - other.detach()
        return model.unpatchify(model.head(h, t_emb))

    first, second, _ = config.t_list
    for chunk in range(batch.target.shape[2] // 3):
        now = slice(3 * chunk, 3 * chunk + 3)
        x = noise[:, :, now] * first
        with torch.no_grad():
            x0 = x - first * velocity(x, first, now)
            x = (1 - second) * x0 + second * draw(x0)
        x0 = x - second * velocity(x, second, now)
        made.append(x0)
        keep: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            velocity(x0.detach(), 0.0, now, keep)
        stored.append(keep)
    return torch.cat(made, 2)


def prompt(model: CausalDiT) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    shape = (2, model.config.text_len, model.config.text_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def gradients(model: CausalDiT, made: Tensor) -> dict[str, Tensor]:
    """Of a fixed linear function of the result."""
    weight = torch.randn(made.shape, generator=torch.Generator().manual_seed(9)).to(made)
    model.zero_grad()
    (weight * made).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cleared", [False, True])
def test_the_students_gradient_is_that_of_the_formula_with_and_without_a_cleared_past(cleared: bool) -> None:
    model = toy().double()
    model.checkpointing = True
    batch = Clips().batch((0, 1))
    batch = Batch(*(x.double() for x in (batch.target, batch.condition, batch.audio)))

    def draw() -> Callable[[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(1)
        return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)

    kv = model.text_kv(prompt(model))
    made = roll_out(model, batch, kv, draw(), gradient=True, kv_cleared=cleared)
    assert made.dtype == torch.float64
    found = gradients(model, made)
    stated = straight_through(model, batch, draw(), past=not cleared)
    torch.testing.assert_close(made, stated, rtol=0, atol=1e-8)  # rotations and RMS norms are in float32
    for name, g in gradients(model, stated).items():
        assert float((found[name] - g).norm()) <= 1e-6 * float(g.norm()), name
    other = gradients(model, straight_through(model, batch, draw(), past=cleared))
    off = {
        name: float((found[name] - g).norm() / g.norm()) for name, g in other.items() if "self_attn.k.weight" in name
    }
    assert min(off.values()) > 0.1


def test_a_cleared_past_belongs_to_the_released_student_and_changes_no_result() -> None:
    """In the losses: the student's value is the same, its gradient is another; the critic's is the same."""
    assert (RELEASED.kv_cleared_before_backward, Recipe().kv_cleared_before_backward) == (True, False)
    found = {}
    for cleared in (False, True):
        recipe = replace(RECIPE, checkpointing=True, kv_cleared_before_backward=cleared)
        nets = networks(recipe)
        nets.model.checkpointing = True
        assert nets.critic is not None
        losses, batch = Losses(nets, recipe), Clips().batch((0, 1))
        student, _ = losses.student(batch, Noise(0, 0, [0, 1], "s"), 0)
        student.backward()  # type: ignore[no-untyped-call]
        critic = losses.critic(batch, Noise(0, 0, [0, 1], "c"), 0).mean()
        critic.backward()  # type: ignore[no-untyped-call]
        grads = [net.blocks[1].self_attn.q.weight.grad for net in (nets.model, nets.critic)]
        found[cleared] = (student.detach(), critic.detach(), *grads)
    same = [torch.equal(a, b) for a, b in zip(found[False], found[True], strict=True)]
    assert same == [True, True, False, True]
    with pytest.raises(ConfigError, match="checkpointing"):
        replace(RELEASED, checkpointing=False)


class Sounds:
    """Shards of which only the sound is read: silence before the clip, then a drawn one."""

    def __init__(self, frames: int) -> None:
        generator = np.random.default_rng(5)
        begin = PAST_FRAMES * SAMPLES_PER_FRAME
        wave = generator.normal(size=(2, begin + frames * SAMPLES_PER_FRAME)) * 0.1
        wave *= 1 + np.sin(np.arange(wave.shape[1]) / 900)
        self.samples = wave[:, begin:].astype(np.float32)
        self._wave = wave.astype(np.float32)

    def sound(self, clip: int) -> NDArray[np.float32]:
        return self._wave[clip]


def upstream_reward(net: SyncNet, video: Tensor, wave: NDArray[np.float32], shifts: int = 15) -> float:
    """Sync-C of video [V, 3, H, W] in [0, 1]: 8-bit pictures, then bilinear resizing; windows one by one; shifts where
    both sides are there."""
    pictures = torch.from_numpy((video.numpy() * 255).astype(np.uint8)).float()
    rgb = torch.nn.functional.interpolate(pictures, (net.config.size,) * 2, mode="bilinear", align_corners=False)
    bgr = rgb[:, [2, 1, 0]]
    lips = torch.cat([net.lips(bgr[i : i + 5].transpose(0, 1)[None])[0] for i in range(len(bgr) - 4)])
    cepstra = torch.from_numpy(mfcc(wave))
    sound = torch.cat([net.sound(cepstra[None, 4 * i : 4 * i + 20])[0] for i in range((len(cepstra) - 20) // 4 + 1)])
    count = min(len(lips), len(sound))
    means = []
    for shift in range(-shifts, shifts + 1):
        apart = [lips[i] - sound[i + shift] for i in range(count) if 0 <= i + shift < count]
        means.append(float(torch.stack([(d + 1e-6).norm() for d in apart]).mean()))
    return sorted(means)[shifts] - min(means)  # the middle one of 2 * shifts + 1


def test_the_released_reward_is_upstreams() -> None:
    net, frames = load_syncnet("drawn"), 41
    video = torch.rand(2, frames, 3, 80, 80, generator=torch.Generator().manual_seed(1))
    sounds: Any = Sounds(frames)
    found = {}
    for recipe in (Recipe(), RELEASED):
        judge = SyncReward(net, lambda latents: video, sounds, recipe.reward_scoring)
        found[recipe.reward_scoring] = judge(torch.zeros(2), (0, 1))
    stated = [upstream_reward(net, v, w) for v, w in zip(video, sounds.samples, strict=True)]
    torch.testing.assert_close(found["upstream"], torch.tensor(stated), rtol=0, atol=1e-6)
    assert float((found["published"] - found["upstream"]).abs().max()) > 0.1


ADAPTED = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2")


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A base model and an adapter of rank 4 in files, as published."""
    monkeypatch.setitem(STUDENTS, "toy", CONFIG)
    base = {name: x.bfloat16() for name, x in toy().state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    adapter = {}
    for layer in (f"blocks.{i}.{name}" for i in range(CONFIG.num_layers) for name in ADAPTED):
        out, into = base[f"{layer}.weight"].shape
        adapter[f"{layer}.lora_A.weight"] = (torch.randn(4, into, generator=generator) / 6).bfloat16()
        adapter[f"{layer}.lora_B.weight"] = (torch.randn(out, 4, generator=generator) / 6).bfloat16()
    paths = [tmp_path / "base.pth", tmp_path / "adapter.pth"]
    for path, tensors in zip(paths, (base, adapter), strict=True):
        torch.save(tensors, path)
    return paths


def stage(files: list[Path], recipe: Recipe, out: Path) -> Trainer:
    """A stage with the model of `files`, run to its end; writes what the command writes."""
    nets = networks(recipe)
    nets.model, nets.adapters = load_unmerged_model(files, "toy")
    trainer = Trainer(recipe, nets, Clips(), out)
    trainer.run()
    save_file(trainer.weights(), out / "student.safetensors")
    save_file(trainer.delta(), out / "adapter.safetensors")
    return trainer


@pytest.mark.parametrize("alpha", [2, 8])
def test_adapters_are_continued_from_files_and_from_stage_to_stage(
    released: list[Path], alpha: int, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, stage="forcing", lora=4, lora_alpha=alpha, iterations=2, weight_decay=0.0)
    files = torch.load(released[1])
    base, layer = toy().state_dict(), "blocks.1.ffn.0"

    def effective(trainer: Trainer) -> Tensor:
        module: Any = trainer.nets.model.get_submodule(layer)
        a, b = module.lora_A.default.weight, module.lora_B.default.weight
        return (alpha / 4 * (b @ a)).detach().clone()

    start = replace(recipe, rate=0.0)
    first = stage(released, start, tmp_path / "start")
    product = 0.5 * files[f"{layer}.lora_B.weight"].float() @ files[f"{layer}.lora_A.weight"].float()
    torch.testing.assert_close(effective(first), product, rtol=1e-5, atol=1e-6)
    module: Any = first.nets.model.get_submodule(layer)
    assert torch.equal(module.base_layer.weight, base[f"{layer}.weight"].bfloat16().float())

    one = stage(released, recipe, tmp_path / "one")
    assert not torch.allclose(effective(one), product, atol=1e-4)
    two = stage([tmp_path / "one"], start, tmp_path / "two")  # the next stage starts where this one ended
    torch.testing.assert_close(effective(two), effective(one), rtol=1e-6, atol=1e-7)
    following: Any = two.nets.model.get_submodule(layer)
    torch.testing.assert_close(following.base_layer.weight, module.base_layer.weight, rtol=0, atol=1e-6)
    weights = one.weights()
    for name, x in two.weights().items():
        torch.testing.assert_close(x, weights[name], rtol=0, atol=1e-6)
    # What a stage wrote is a training delta: over the base model it replaces the adapter.
    over = load_student([*released, tmp_path / "one" / "adapter.safetensors"], "toy").state_dict()
    assert float((over[f"{layer}.weight"].float() - weights[f"{layer}.weight"]).abs().max()) < 0.01
    both = base[f"{layer}.weight"] + product + effective(one)
    assert float((over[f"{layer}.weight"].float() - both).abs().max()) > 0.05


def test_adapters_that_cannot_be_continued_are_an_error(released: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank 4"):
        stage(released, replace(RECIPE, stage="forcing", lora=8), tmp_path / "out")


def weighted(recipe: Recipe, rewards: list[list[float]]) -> list[float]:
    """By which factor the losses of successive updates, one batch of two clips each, are weighted."""
    nets = networks(recipe)
    supply = iter(rewards)
    nets.judge = lambda latents, clips: torch.tensor(next(supply))
    losses, found = Losses(nets, recipe), []
    for update in range(len(rewards)):
        loss, numbers = losses.student(Clips().batch((0, 0)), Noise(0, 0, [0, 0], "s"), 0)  # two equal clips
        found.append(float(loss.detach() / numbers["student/matching"]))
        losses.reward_mean.end_update(sum(rewards[update]) / 2)
    return found


def test_centred_rewards_have_a_moving_average() -> None:
    """Upstream's includes the batch itself; the default's is that of earlier updates, so that it acts at batch 1."""
    rewards = [[1.0, 1.2], [0.2, 0.8], [1.5, 2.1]]
    recipe = replace(RECIPE, reward="centred", reward_beta=2.0)

    def factor(r: list[float], centre: float) -> float:
        return sum(math.exp(2 * (x - centre)) for x in r) / len(r)

    upstream, m = [], None
    for r in rewards:
        mean = sum(r) / 2
        m = mean if m is None else 0.9 * m + 0.1 * mean
        upstream.append(factor(r, m))
    found = weighted(replace(recipe, reward_centre=RELEASED.reward_centre), rewards)
    assert found == pytest.approx(upstream, rel=1e-5)
    default = [1.0, factor(rewards[1], 1.1), factor(rewards[2], 0.9 * 1.1 + 0.1 * 0.5)]
    assert weighted(recipe, rewards) == pytest.approx(default, rel=1e-5)
    # A reward that is not finite is left out of the average.
    assert weighted(recipe, [[1.0, 1.2], [math.nan, 0.0], [0.2, 0.8]])[2] == pytest.approx(default[1], rel=1e-5)


@pytest.mark.parametrize("centre", ["updates", "batches"])
def test_the_average_of_rewards_is_resumed(centre: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, reward="centred", reward_centre=centre, accumulate=2, update_ratio=1, iterations=4)

    def run(out: Path, *until: int | None) -> list[float]:
        for end in until:
            trainer = Trainer(recipe, networks(recipe), Clips(), out)
            trainer.run(end)
        return [line["student/loss"] for line in lines(out)]

    assert run(tmp_path / "whole", None) == run(tmp_path / "cut", 1, 3, None)


def test_centred_rewards_do_not_depend_on_accumulation(tmp_path: Path) -> None:
    found = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        recipe = replace(RECIPE, reward="centred", batch=batch, accumulate=accumulate, update_ratio=1, iterations=3)
        out = tmp_path / f"{batch}"
        Trainer(recipe, networks(recipe), Clips(), out).run()
        found.append([line["student/loss"] for line in lines(out)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_the_student_sees_the_critic_before_or_after_its_update(first: bool, tmp_path: Path) -> None:
    assert (Recipe().critic_first, RELEASED.critic_first) == (True, False)
    recipe = replace(RECIPE, critic_first=first, update_ratio=1, critic_rate=1e-2)
    trainer = Trainer(recipe, networks(recipe), Clips(), tmp_path)
    clips = tuple(trainer.clips(i) for i in range(2))
    trainer.run(1)
    fresh = networks(recipe)
    old = float(Losses(fresh, recipe).student(Clips().batch(clips), Noise(0, 0, [0, 1], "student"), 0)[0].detach())
    assert trainer.nets.critic is not None
    assert fresh.critic is not None
    fresh.critic.load_state_dict(trainer.nets.critic.state_dict())
    new = float(Losses(fresh, recipe).student(Clips().batch(clips), Noise(0, 0, [0, 1], "student"), 0)[0].detach())
    assert abs(new - old) > 1e-3 * abs(old)
    assert lines(tmp_path)[0]["student/loss"] == pytest.approx(new if first else old, rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "updates", "students", "first"),
    [(Recipe(), 600, 120, 0), (RELEASED, 599, 119, 4)],
    ids=["default", "released"],
)
def test_the_number_of_updates(
    recipe: Recipe, updates: int, students: int, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of critic and student, and how many the critic has before the student's first."""
    recipe = replace(recipe, student="toy", lora=0, precision="fp32", save_every=1000, sample_every=0)
    trainer = Trainer(recipe, networks(recipe), Clips(), tmp_path)
    monkeypatch.setattr(trainer, "_gradient", lambda *_: {"loss": 0.0})
    monkeypatch.setattr(trainer, "_step", lambda what: {"gradient": 0.0})
    trainer.run()
    found = lines(tmp_path)
    assert sum("critic/gradient" in line for line in found) == updates
    turns = [i for i, line in enumerate(found) if "student/gradient" in line]
    assert len(turns) == students
    assert turns[0] == first
    assert {b - a for a, b in pairwise(turns)} == {5}
    assert replace(recipe, stage="forcing", iterations=5000).updates == 5000 - (600 - updates)


@pytest.mark.parametrize("each", [False, True])
def test_the_last_step_is_drawn_for_each_update_or_each_batch(
    each: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (Recipe().exit_per_batch, RELEASED.exit_per_batch) == (False, True)
    steps: list[int] = []

    def rolled(model: Any, batch: Batch, kv: Any, draw: Any, *, exit_step: int, **_: Any) -> Tensor:
        steps.append(exit_step)
        return batch.target.clone().requires_grad_()

    monkeypatch.setattr(distil_stages, "roll_out", rolled)
    recipe = replace(RECIPE, exit_per_batch=each, batch=1, accumulate=4, iterations=8, update_ratio=8)
    Trainer(recipe, networks(recipe), Clips(), tmp_path).run()
    updates = [set(steps[i : i + 4]) for i in range(0, len(steps), 4)]  # the critic's first, the student's, the others
    assert len(updates) == 9
    assert all(len(drawn) == 1 for drawn in updates) is not each
    assert set.union(*updates) == {0, 1}
    losses = Losses(networks(recipe), recipe)
    steps.clear()
    for part in (0, 1, 2, 3):
        for samples in ([2 * part], [2 * part + 1]):  # two ranks
            losses.critic(Clips().batch((0,)), Noise(0, 5, samples, "c"), 5, part)
    assert steps[::2] == steps[1::2]
    assert (len(set(steps)) == 2) is each


@pytest.mark.parametrize("each", [False, True])
def test_windows_are_drawn_for_each_update_or_each_batch(
    each: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (Recipe().window_per_batch, RELEASED.window_per_batch) == (False, True)
    windows: list[tuple[int, int]] = []
    attend = Losses._attend

    def recorded(self: Losses, net: CausalDiT, batch: Batch, window: int, sink: int) -> Any:
        windows.append((window, sink))
        return attend(self, net, batch, window, sink)

    monkeypatch.setattr(Losses, "_attend", recorded)
    recipe = replace(RECIPE, stage="forcing", window_per_batch=each, batch=1, accumulate=4, iterations=6)
    Trainer(recipe, networks(recipe), Clips(), tmp_path).run()
    updates = [windows[i : i + 4] for i in range(0, len(windows), 4)]
    assert len(updates) == 6
    assert all(len(set(drawn)) == 1 for drawn in updates) is not each
    assert {*windows} <= {*recipe.windows}
    assert len({*windows}) > 2


def test_the_documentation_has_each_field_that_the_recipes_differ_in() -> None:
    page = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text()
    default, released = base_values("default"), base_values("released")
    different = [name for name, value in default.items() if released[name] != value]
    assert len(different) == 11
    for name in different:
        assert f"| `{name}` | {default[name]} | {released[name]} |" in page
