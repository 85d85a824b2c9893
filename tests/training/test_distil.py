"""Distillation: the flow of gradients, the losses, and that results do not depend on interruption or ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lipstream.errors import CheckpointError, ConfigError
from lipstream_export import denoiser
from lipstream_models import CausalDiT, KVRing
from lipstream_models.rope import rotate, spatial_angles, temporal_angles, token_angles
from lipstream_models.schedule import add_noise, predict_x0
from lipstream_training.distil import parallel
from lipstream_training.distil.losses import distribution_matching, guided, rewarded, score_times
from lipstream_training.distil.noise import Noise
from lipstream_training.distil.recipe import Recipe, load_recipe
from lipstream_training.distil.rollout import Batch, ChunkAttention, Ring, roll_out
from lipstream_training.distil.stages import Losses, Networks
from lipstream_training.distil.trainer import Trainer, checkpoints
from torch import Tensor
from toy_distillation import CONFIG, FRAMES, RECIPE, Clips, networks, toy

CHUNKS = FRAMES // 3


def draws(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator)


def text_kv(model: CausalDiT, rows: int) -> list[tuple[Tensor, Tensor]]:
    text = torch.randn(1, CONFIG.text_len, CONFIG.text_dim, generator=torch.Generator().manual_seed(4))
    return [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in model.text_kv(text)]


def streaming(model: CausalDiT, ring: KVRing, chunk: int) -> denoiser.RingAttention:
    """Self-attention over the ring as the PyTorch backend does it."""
    ring.begin(chunk)
    frames = torch.arange(3) + 3 * chunk
    spatial = spatial_angles(CONFIG.grid, CONFIG.head_dim)
    angles = token_angles(temporal_angles(frames, CONFIG.head_dim), spatial)
    cos, sin = angles.cos().float(), angles.sin().float()

    def write(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return ring.write(layer, rotate(k, cos[:, :, None], sin[:, :, None]), v)

    return denoiser.RingAttention(write, cos, sin, model)


@torch.no_grad()
def test_a_rollout_is_what_the_stream_generates() -> None:
    """Clip by clip through `denoise`, `context` and the ring that the SDK runs."""
    model, batch = toy(), Clips().batch((0, 1))
    noise = draws(0)(batch.target)
    fresh = [draws(10 + chunk)(batch.target[:, :, :3]) for chunk in range(CHUNKS)]
    supply = iter([noise, *fresh])
    made = roll_out(model, batch, text_kv(model, 2), lambda like: next(supply))
    for row in range(2):
        ring = KVRing(CONFIG)
        kv = [(k.transpose(1, 2), v.transpose(1, 2)) for k, v in text_kv(model, 1)]
        for chunk in range(CHUNKS):
            now = slice(3 * chunk, 3 * chunk + 3)
            condition, audio = batch.condition[row, :, now], batch.audio[row, 12 * chunk : 12 * chunk + 12]
            attend = streaming(model, ring, chunk)
            x = noise[row, :, now] * CONFIG.t_list[0]
            for step, t in enumerate(CONFIG.t_list[:-1]):
                modulation = model.modulation(*model.time(torch.tensor([t])))[0]
                x0 = predict_x0(x, model.denoise(x, condition, audio, modulation, kv, attend), t)
                if step == 0:
                    x = add_noise(x0, fresh[chunk][row], CONFIG.t_list[1])
            modulation = model.modulation(*model.time(torch.zeros(1)))[0]
            model.context(x0, condition, audio, modulation, kv, attend, attend.leave)
            torch.testing.assert_close(made[row, :, now], x0, rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_through_stored_keys_and_values() -> None:
    """The gradient of chunk 1 is that of chunk 1 alone, with chunk 0's K and V as constants."""
    model, batch = toy(), Clips().batch((0,))
    made = roll_out(model, batch, text_kv(model, 1), draws(0), gradient=True)
    ring = Ring(CONFIG)
    first = batch.target[:, :, :3]
    attend = ChunkAttention(ring, 0, keep=True)
    model(first, batch.condition[:, :, :3], batch.audio[:, :12], torch.zeros(1, 3), text_kv(model, 1), attend)
    kept = [x for layers in ring.chunks for layer in layers for x in layer]
    assert len(kept) == 3 * CONFIG.num_layers
    assert not any(x.requires_grad for x in kept)
    # The output of chunk 1 depends on chunk 0's weights through the ring, but without gradient: the gradient of the
    # whole is the sum of those of the chunks, each computed with the others' history as a constant.
    parameters = list(model.parameters())
    whole = torch.autograd.grad(made.sum(), parameters, retain_graph=True, allow_unused=True)
    parts = [
        torch.autograd.grad(made[:, :, 3 * c : 3 * c + 3].sum(), parameters, retain_graph=True, allow_unused=True)
        for c in range(CHUNKS)
    ]
    for total, *pieces in zip(whole, *parts, strict=True):
        if total is not None:
            torch.testing.assert_close(total, sum(p for p in pieces if p is not None), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("exit_step", [0, 1])
def test_only_the_exit_step_has_a_gradient(exit_step: int) -> None:
    """One backward pass through each block for each chunk: earlier steps and context passes have no graph."""
    model, batch = toy(), Clips().batch((0,))
    with_graph = 0

    def count(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal with_graph
        with_graph += output.requires_grad

    model.head.register_forward_hook(count)
    made = roll_out(model, batch, text_kv(model, 1), draws(0), exit_step=exit_step, gradient=True)
    assert with_graph == CHUNKS
    assert made.requires_grad
    with torch.no_grad():
        plain = roll_out(model, batch, text_kv(model, 1), draws(0), exit_step=exit_step)
    torch.testing.assert_close(made, plain)


def test_checkpointing_changes_no_gradient() -> None:
    batch = Clips().batch((0, 1))
    found = []
    for checkpointing in (False, True):
        model = toy()
        model.checkpointing = checkpointing
        made = roll_out(model, batch, text_kv(model, 2), draws(0), gradient=True)
        made.square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_guidance_acts_only_inside_its_window() -> None:
    sure, free = torch.randn(2, 5, 2, 3, 4, 4)
    t = torch.tensor([0.3, 0.556, 0.7, 0.882, 0.95])
    found = guided(sure, free, t, Recipe())
    torch.testing.assert_close(found[[0, 4]], sure[[0, 4]])
    torch.testing.assert_close(found[1:4], (sure + 3.5 * (sure - free))[1:4])
    everywhere = guided(sure, free, t, Recipe(gate=(0.0, 1.0)))
    torch.testing.assert_close(everywhere, sure + 3.5 * (sure - free))


def test_the_gradient_is_the_formula_where_the_score_is_known() -> None:
    """Data N(m, s^2): its x0 at x_t is known in closed form; so the fake's, of another Gaussian."""
    torch.manual_seed(0)
    g = torch.randn(3, 2, 4, 5, 5, requires_grad=True)
    t = torch.tensor([0.2, 0.6, 0.9]).view(-1, 1, 1, 1, 1)
    x = add_noise(g.detach(), torch.randn_like(g), t)

    def posterior(mean: float, deviation: float) -> Tensor:
        gain = (1 - t) * deviation**2 / ((1 - t) ** 2 * deviation**2 + t**2)
        return mean + gain * (x - (1 - t) * mean)

    f, teacher = posterior(0.5, 2.0), posterior(-1.0, 0.7)
    distribution_matching(g, f, teacher).sum().backward()
    weight = 1 / ((g.detach() - teacher).abs().flatten(1).mean(1) + 1e-6).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(g.grad, weight * (f - teacher) / g[0].numel())


def test_reward_weights_follow_their_definitions() -> None:
    losses, r = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 2.0])
    w = (2 * r).exp()
    assert rewarded(losses, None, Recipe()) == losses.mean()
    assert rewarded(losses, r, Recipe(reward="none")) == losses.mean()
    torch.testing.assert_close(rewarded(losses, r, Recipe(reward="exp")), (w * losses).mean())
    torch.testing.assert_close(rewarded(losses, r, Recipe(reward="self_normalised")), (w * losses).sum() / w.sum())
    torch.testing.assert_close(rewarded(losses, r, Recipe(reward="batch_mean")), w.mean() * losses.mean())
    centred = rewarded(losses, r, Recipe(reward="centred"), torch.tensor(1.5))
    torch.testing.assert_close(centred, ((2 * (r - 1.5)).exp() * losses).mean())
    clamped = rewarded(losses, r, Recipe(reward_clamp=2.0))
    torch.testing.assert_close(clamped, (w.clamp(max=torch.tensor(2.0).exp().item()) * losses).mean())


def test_score_times_are_the_released_ones() -> None:
    t = score_times(torch.tensor([0.0, 0.4, 0.6]), 5.0)
    assert float(t[0]) == pytest.approx(0.00498, abs=1e-4)
    assert float(t[1]) == pytest.approx(0.769, abs=2e-3)
    assert float(t[2]) == pytest.approx(0.882, abs=2e-3)


def test_a_dropped_clip_has_neither_audio_nor_prompt() -> None:
    """With drop 1 the loss does not depend on the audio, nor on the prompt."""
    nets = networks(replace(RECIPE, stage="teacher"))
    batch = Clips().batch((0, 1))
    loud = replace(batch, audio=5 * batch.audio)
    for drop, same in ((1.0, True), (0.0, False)):
        losses = Losses(nets, replace(RECIPE, stage="teacher", drop=drop))
        a, b = (losses.teacher(x, Noise(0, 0, [0, 1], "t")) for x in (batch, loud))
        assert torch.equal(a, b) is same
    other = Losses(replace(nets, text=nets.text + 1), replace(RECIPE, stage="teacher", drop=1.0))
    assert torch.equal(other.teacher(batch, Noise(0, 0, [0, 1], "t")), a) is False
    dropped = Losses(nets, replace(RECIPE, stage="teacher", drop=1.0)).teacher(batch, Noise(0, 0, [0, 1], "t"))
    torch.testing.assert_close(other.teacher(batch, Noise(0, 0, [0, 1], "t")), dropped)


def trained(recipe: Recipe, out: Path, until: int | None = None) -> tuple[dict[str, Tensor], list[float]]:
    losses: list[float] = []
    trainer = Trainer(recipe, networks(recipe), Clips(), out)
    trainer.run(until, losses.append)
    return trainer.weights(), losses


STAGES = [
    replace(RECIPE, stage="teacher", average=0.9),
    replace(RECIPE, stage="forcing", checkpointing=True),
    replace(RECIPE, stage="self_forcing", lora=4, lora_alpha=2, reward="centred"),
]


@pytest.mark.parametrize("recipe", STAGES, ids=lambda recipe: recipe.stage)
def test_an_interrupted_run_resumes_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    whole, curve = trained(recipe, tmp_path / "whole")
    for cut in (1, 3, 4):
        out = tmp_path / f"cut-{cut}"
        _, first = trained(recipe, out, cut)
        weights, rest = trained(recipe, out)
        assert first + rest == curve
        assert weights.keys() == whole.keys()
        for name, x in whole.items():
            assert torch.equal(weights[name], x), name


@pytest.mark.parametrize("recipe", STAGES, ids=lambda recipe: recipe.stage)
def test_a_stage_changes_what_it_trains_and_nothing_else(recipe: Recipe, tmp_path: Path) -> None:
    nets = networks(recipe)
    before = {name: x.clone() for name, x in nets.model.state_dict().items()}
    teacher = None if nets.teacher is None else {n: x.clone() for n, x in nets.teacher.state_dict().items()}
    trainer = Trainer(recipe, nets, Clips(), tmp_path / "out")
    trainer.run()
    after = trainer.weights()
    assert after.keys() == before.keys()
    changed = {name for name, x in before.items() if not torch.equal(after[name], x)}
    if recipe.lora:
        assert all(
            name.startswith(parallel.TRAINED_WHOLE) or ".attn" in name or "_attn." in name or "ffn" in name
            for name in changed
        )
        assert "blocks.0.norm3.weight" not in changed
        assert "blocks.0.self_attn.q.weight" in changed
    else:
        assert len(changed) > 0.9 * len(before)
    if teacher is not None and nets.teacher is not None:
        assert all(torch.equal(x, teacher[name]) for name, x in nets.teacher.state_dict().items())


def test_merged_adapters_equal_applied_adapters() -> None:
    model, plain = toy(), toy()
    parallel.adapt(model, 4, 2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    plain.load_state_dict(parallel.merged(model))
    batch = Clips().batch((0,))
    made = [roll_out(net, batch, text_kv(net, 1), draws(0)) for net in (model, plain)]
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)


def _rank(rank: int, port: int, recipe: Recipe, out: Path, results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    device = parallel.start()
    losses: list[float] = []
    trainer = Trainer(recipe, networks(recipe), Clips(), out, device=device)
    trainer.run(3, losses.append)
    again = Trainer(recipe, networks(recipe), Clips(), out, device=device)  # from the shards that both wrote
    again.run(None, losses.append)
    weights = again.weights()
    if rank == 0:
        results.put((losses, {name: x.tolist() for name, x in weights.items()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(STAGES[0], marks=pytest.mark.slow), STAGES[1], pytest.param(STAGES[2], marks=pytest.mark.slow)],
    ids=lambda recipe: recipe.stage,
)
def test_two_ranks_equal_one_with_accumulation(recipe: Recipe, tmp_path: Path) -> None:
    # The critic's gradient undivided, as upstream, would depend on `accumulate`.
    one, two = (replace(recipe, batch=1, accumulate=n, exact_critic=True) for n in (4, 2))
    whole, curve = trained(one, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, port, two, tmp_path / "two", results)) for r in range(2)]
    for process in ranks:
        process.start()
    losses, weights = results.get(timeout=240)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert losses == pytest.approx(curve, rel=1e-5)
    for name, x in whole.items():
        torch.testing.assert_close(torch.tensor(weights[name]), x, rtol=1e-3, atol=1e-4)


def test_old_checkpoints_are_removed_and_other_recipes_rejected(tmp_path: Path) -> None:
    recipe = replace(RECIPE, stage="forcing", save_every=1)
    trained(recipe, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000005", "step-0000006"]
    (tmp_path / "step-0000007.part").mkdir()  # a run that was killed while it wrote
    assert len(checkpoints(tmp_path)) == 2
    with pytest.raises(CheckpointError, match="rate"):
        Trainer(replace(recipe, rate=0.5), networks(recipe), Clips(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 7))
    assert any((tmp_path / "log").iterdir())


def test_some_checkpoints_are_kept_for_good(tmp_path: Path) -> None:
    recipe = replace(RECIPE, stage="forcing", iterations=11, save_every=2)
    trained(replace(recipe, keep_every=2), tmp_path, 7)  # an interruption saves a checkpoint that is not the second one
    trained(replace(recipe, keep_every=2), tmp_path)
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == [f"step-{i:07d}" for i in (4, 8, 10, 11)]
    with pytest.raises(ConfigError, match="keep_every"):
        replace(recipe, keep_every=-1)


def test_the_average_and_the_last_weights_are_both_given(tmp_path: Path) -> None:
    """The average is the mean that its definition gives: decay min(0.5, n / (n + 10)) at update n."""
    recipe = replace(RECIPE, stage="forcing", average=0.5)
    trainer = Trainer(recipe, networks(recipe), Clips(), tmp_path)
    name = "head.head.weight"
    mean = trainer.weights(averaged=False)[name]
    for update in range(1, 7):
        trainer.run(update)
        last = trainer.weights(averaged=False)[name]
        decay = min(0.5, update / (update + 10))
        mean = decay * mean + (1 - decay) * last
    torch.testing.assert_close(trainer.weights()[name], mean)
    assert torch.equal(trainer.weights(averaged=False)[name], last)
    assert not torch.equal(last, mean)


def test_every_clip_is_used_once_per_epoch(tmp_path: Path) -> None:
    trainer = Trainer(replace(RECIPE, stage="forcing"), networks(replace(RECIPE, stage="forcing")), Clips(), tmp_path)
    laps = [[trainer.clips(7 * lap + i) for i in range(7)] for lap in range(3)]
    assert all(sorted(lap) == list(range(7)) for lap in laps)
    assert laps[0] != laps[1]


def test_the_student_approaches_its_teacher(tmp_path: Path) -> None:
    """After distribution matching the critic's and the teacher's x0 of the student's output differ less."""
    recipe = replace(RECIPE, iterations=60, rate=3e-3, critic_rate=3e-3, update_ratio=3, reward="none", beta1=0.9)
    trained(recipe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    gaps = [line["student/gap"] for line in lines if "student/gap" in line]
    assert sum(gaps[-5:]) < sum(gaps[:5])


def test_recipes_come_from_files_and_options(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('stage = "forcing"\nwindows = [[7, 1], [10, 1]]\nrate = 1\n')
    recipe = load_recipe(path, batch="3", gate="0.5, 0.9", exact_critic="true")
    assert recipe.windows == ((7, 1), (10, 1))
    assert (recipe.rate, recipe.batch, recipe.gate, recipe.exact_critic) == (1.0, 3, (0.5, 0.9), True)
    for text in ("stag = 1", "stage = 'x'", "batch = 0", "gate = [0.9, 0.1]", "= nonsense"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_recipe(path)
    with pytest.raises(ConfigError, match="no recipe"):
        load_recipe(tmp_path / "gone.toml")


def test_the_sink_can_keep_its_index(tmp_path: Path) -> None:
    """Upstream's first stage and the ring index the sink differently; the recipe selects one."""
    batch = Clips().batch((0, 1))
    found = []
    for moves in (False, True):
        recipe = replace(RECIPE, stage="forcing", windows=((7, 1),), sink_moves=moves)
        found.append(Losses(networks(recipe), recipe).forcing(batch, Noise(0, 0, [0, 1], "f"), 0))
    assert not torch.equal(*found)
    assert isinstance(batch, Batch)
    assert isinstance(networks(), Networks)
