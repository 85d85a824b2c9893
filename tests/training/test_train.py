"""The recipes on problems that can be learnt in seconds, and the files they write."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lipstream.errors import CheckpointError
from lipstream_models import CausalDiT, ClipAttention, StudentConfig
from lipstream_models.layers import round_to_bfloat16
from lipstream_models.parts import StudentParts
from lipstream_models.schedule import predict_x0
from lipstream_training.diffusion import (
    Latents,
    MouthProbe,
    StudentRecipe,
    generate_clips,
    lip_region,
    start_as_identity,
    train_student,
)
from lipstream_training.optim import Average, Cosine
from torch import nn
from toys import CONFIG, toy_parts, toy_student, toy_text


def latents(config: StudentConfig = CONFIG) -> Latents:
    """Two clips of two chunks, whose condition contains the target."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn((2, config.latent_channels, 6, *config.latent_size), generator=generator)
    mask = torch.ones(config.latent_size)
    mask[2:] = 0
    audio = torch.randn(2, 24, config.audio_dim, generator=generator)
    mouth = torch.rand(2, 24, 4, generator=generator)
    masked = (target * mask).half()
    return Latents(target.half(), target[:, :, :1].half(), masked, target.half(), audio, mouth, mask)


def test_the_loss_falls() -> None:
    losses: list[float] = []
    model = toy_student().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    recipe = StudentRecipe(steps=25, batch=4, learning_rate=1e-2, own_work=0)
    average = train_student(model, latents(), toy_text(), recipe, seed=0, progress=losses.append)
    assert len(losses) == 25
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:4])
    assert any(not torch.equal(x, before[name]) for name, x in average.state_dict().items())
    assert not any(p.requires_grad for p in average.parameters())


def test_the_same_seed_gives_the_same_student() -> None:
    recipe = StudentRecipe(steps=3, batch=2)
    runs = [
        train_student(
            toy_student().requires_grad_(True), latents(), toy_text(), recipe, seed=seed, progress=lambda loss: None
        ).state_dict()
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(x, runs[1][name]) for name, x in runs[0].items())
    assert any(not torch.equal(x, runs[2][name]) for name, x in runs[0].items())


def test_an_interrupted_run_resumes_with_the_same_result(tmp_path: Path) -> None:
    class CutOff(Exception):
        pass

    recipe, data = StudentRecipe(steps=104, batch=1), latents()
    whole = train_student(
        toy_student().requires_grad_(True), data, toy_text(), recipe, seed=1, progress=lambda loss: None
    )
    partial, seen = tmp_path / "student.partial.pt", list[float]()

    def cut(loss: float) -> None:
        seen.append(loss)
        if len(seen) == 103:
            raise CutOff

    for progress in (cut, seen.append):
        student = toy_student().requires_grad_(True)
        try:
            found = train_student(student, data, toy_text(), recipe, seed=1, progress=progress, partial=partial)
        except CutOff:
            assert partial.exists()
    assert not partial.exists()
    assert np.isnan(seen[103:203]).all()
    for name, x in found.state_dict().items():
        torch.testing.assert_close(x, whole.state_dict()[name], rtol=0, atol=0)


def test_a_batch_has_the_released_order_of_channels() -> None:
    data = latents()
    target, condition, audio, mouth = data.batch(torch.tensor([1, 0]))
    c = CONFIG.latent_channels
    assert torch.equal(target, data.target[[1, 0]].float())
    assert torch.equal(condition[:, :c], data.first[[1, 0]].float().expand(-1, -1, 6, -1, -1))
    assert torch.equal(condition[0, c, 3], 1 - data.mask)
    assert torch.equal(condition[:, c + 1 : 2 * c + 1], data.masked[[1, 0]].float())
    assert torch.equal(condition[:, 2 * c + 1 :], data.sequence[[1, 0]].float())
    assert torch.equal(audio, data.audio[[1, 0]])
    assert torch.equal(mouth, data.mouth[[1, 0]])


WIDE = replace(CONFIG, dim=96, num_heads=4)


@torch.no_grad()
def test_an_untrained_student_predicts_the_first_frame() -> None:
    torch.manual_seed(0)
    model = CausalDiT(WIDE)
    start_as_identity(model)
    data = latents(WIDE)
    target, condition, audio, _ = data.batch(torch.tensor([0, 1]))
    noise = torch.randn_like(target)
    attend = ClipAttention(WIDE, 6, causal=True)
    kv = [(k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1)) for k, v in model.text_kv(toy_text(WIDE)[None])]
    velocity = model(noise, condition, audio, torch.full((2, 6), 0.999), kv, attend)
    found, first = predict_x0(noise, velocity, 0.999), data.first.float().expand_as(target)
    assert (found - first).square().mean() < 0.2 * (target - first).square().mean()


def test_the_probe_predicts_the_mouth_from_its_block() -> None:
    model = toy_student().requires_grad_(True)
    probe = MouthProbe(model, block=2)
    with pytest.raises(AssertionError, match="not run"):
        probe(torch.zeros(1, 24, 4))
    data = latents()
    target, condition, audio, mouth = data.batch(torch.tensor([0]))
    seen: list[torch.Tensor] = []
    model.blocks[2].register_forward_hook(lambda block, inputs, output: seen.append(output))
    kv = model.text_kv(toy_text()[None])
    model(target, condition, audio, torch.full((1, 6), 0.5), kv, ClipAttention(CONFIG, 6, causal=True))
    loss = probe(mouth)
    read = nn.functional.linear(seen[0].mean(2), probe.read.weight, probe.read.bias).reshape(1, 24, 4)
    assert loss.item() == pytest.approx((read - mouth).square().mean().item(), rel=1e-5)
    loss.backward()
    gradients = [p.grad is not None and bool(p.grad.any()) for p in model.audio_proj.parameters()]
    assert any(gradients)
    assert model.blocks[3].ffn[0].weight.grad is None  # nothing after the block learns from it


def test_the_lip_region_is_in_the_middle() -> None:
    region = lip_region((16, 16))
    assert region.sum() == 8 * 10
    assert torch.equal(region, region.flip(1))


def test_generate_clips_equals_a_stream() -> None:
    """Chunk by chunk, through the ring, by the torch backend, which has a separate loop."""
    from lipstream.backends.sampler import generate_chunk
    from lipstream_export.torch_backend import TorchBackend

    model, data, text = toy_student(), latents(), toy_text()
    found = generate_clips(model, data, text, torch.tensor([1]), seed=5)[0]
    _, condition, audio, _ = data.batch(torch.tensor([1]))
    stream = TorchBackend(StudentParts(CONFIG, model, text)).open_steps()
    generator = torch.Generator().manual_seed(5)
    for chunk in range(2):
        now = slice(3 * chunk, 3 * chunk + 3)
        shape = (1, CONFIG.latent_channels, 3, *CONFIG.latent_size)
        noises = [torch.randn(shape, generator=generator)[0].numpy() for _ in CONFIG.t_list[:-1]]
        stream.begin_chunk(chunk)
        inputs = condition[0, :, now].numpy(), audio[0, 12 * chunk : 12 * chunk + 12].numpy()
        wanted = generate_chunk(stream, CONFIG.t_list, noises, *inputs)
        stream.context(wanted, *inputs)
        error = np.linalg.norm(found[:, now].numpy() - wanted) / np.linalg.norm(wanted)
        assert error < 0.05  # roll-outs run in bfloat16


def test_schedule_warms_up_and_comes_down() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = Cosine(optimizer, 100), list[float]()
    for _ in range(100):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1 / 3)
    assert max(rates) <= 1
    assert rates.index(max(rates)) < 4
    assert np.all(np.diff(rates[4:]) < 0)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_average_follows_the_weights() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = Average(module, decay=0.5)
    module.weight.data.fill_(1)
    values = []
    for _ in range(30):
        average.update()
        with average.in_place():
            values.append(module.weight.item())
    assert values[0] == pytest.approx(10 / 11)
    assert np.all(np.diff(values) >= 0)
    assert values[-1] == pytest.approx(1, abs=1e-6)
    assert module.weight.item() == 1


def test_a_checkpoint_loads_as_it_was_written(tmp_path: Path) -> None:
    saved = toy_parts()
    saved.save(tmp_path / "checkpoint")
    found = StudentParts.from_checkpoint(tmp_path / "checkpoint")
    assert found.config == saved.config
    assert found.taehv
    assert saved.taehv
    assert found.taehv.config == saved.taehv.config
    assert found.model == saved.model
    assert found.text is not None
    assert saved.text is not None
    assert torch.equal(found.text, saved.text)
    assert found.masks.keys() == saved.masks.keys() == {"pixel", "latent", "composite"}
    for name, mask in saved.masks.items():
        assert torch.equal(found.masks[name], mask)
    assert {*found.modules()} == {"student", "taehv", "speech"}
    for name, ours in found.modules().items():
        theirs = saved.modules()[name]
        assert not ours.training
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(x, theirs.state_dict()[key]) for key, x in ours.state_dict().items())


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    toy_parts().save(tmp_path)
    description = tmp_path / "checkpoint.json"
    description.write_text(description.read_text().replace('"ffn_dim": 40', '"ffn_dim": 48'))
    with pytest.raises(CheckpointError, match=r"ffn\.0\.weight"):
        StudentParts.from_checkpoint(tmp_path)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_rounding_is_to_the_nearest_bfloat16(values: list[float]) -> None:
    module = nn.Linear(len(values), 1, bias=False)
    module.weight.data.copy_(torch.tensor([values]))
    round_to_bfloat16(module)
    found, wanted = module.weight.detach().numpy()[0], np.array(values, np.float32)
    assert not np.any(found.view(np.uint32) & 0xFFFF)
    toward_zero = wanted.view(np.uint32) & 0xFFFF0000
    error = np.abs(found.astype(np.float64) - wanted)
    for neighbour in (toward_zero, toward_zero + 0x10000):
        assert np.all(error <= np.abs(neighbour.view(np.float32).astype(np.float64) - wanted))
