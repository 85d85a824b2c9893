"""The recipes on problems that can be learnt in seconds, and what they leave on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lipstream_training.autoencoder import (
    AutoencoderRecipe,
    LatentScale,
    encode_clip,
    initialise,
    picture_loss,
    train_autoencoder,
)
from lipstream_training.checkpoint import Checkpoint, round_to_bfloat16
from lipstream_training.diffusion import DiffusionRecipe, Latents, train_student, train_teacher
from lipstream_training.models import CausalDiT
from lipstream_training.optim import Average, Cosine
from torch import Tensor, nn
from toys import CONFIG, toy_checkpoint, toy_student, toy_taehv, toy_text


class Train(Protocol):
    def __call__(
        self, model: CausalDiT, data: Latents, text: Tensor, recipe: DiffusionRecipe, **options: Any
    ) -> CausalDiT: ...


def latents() -> Latents:
    """Two clips of two chunks, the target plain to see in the condition."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, CONFIG.latent_channels, 6, *CONFIG.latent_size)
    target = torch.randn(shape, generator=generator)
    mask = torch.ones(CONFIG.latent_size)
    mask[2:] = 0
    audio = torch.randn(2, 24, CONFIG.audio_dim, generator=generator)
    return Latents(target.half(), (target * mask).half(), target.half(), audio, mask)


@pytest.mark.parametrize("train", [train_teacher, train_student])
def test_the_loss_falls(train: Train) -> None:
    losses: list[float] = []
    model = toy_student().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    recipe = DiffusionRecipe(steps=25, batch=4, learning_rate=1e-2)
    average = train(model, latents(), toy_text(), recipe, seed=0, progress=losses.append)
    assert len(losses) == 25
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:4])
    assert any(not torch.equal(x, before[name]) for name, x in average.state_dict().items())
    assert not any(p.requires_grad for p in average.parameters())


def test_the_same_seed_gives_the_same_student() -> None:
    recipe = DiffusionRecipe(steps=3, batch=2)
    runs = [
        train_student(
            toy_student().requires_grad_(True), latents(), toy_text(), recipe, seed=seed, progress=lambda loss: None
        ).state_dict()
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(x, runs[1][name]) for name, x in runs[0].items())
    assert any(not torch.equal(x, runs[2][name]) for name, x in runs[0].items())


def test_a_batch_has_the_released_order_of_channels() -> None:
    data = latents()
    target, condition, audio = data.batch(torch.tensor([1, 0]))
    c = CONFIG.latent_channels
    assert torch.equal(target, data.target[[1, 0]].float())
    assert torch.equal(condition[:, :c], data.reference[[1, 0], :, :1].float().expand(-1, -1, 6, -1, -1))
    assert torch.equal(condition[0, c, 3], 1 - data.mask)
    assert torch.equal(condition[:, c + 1 : 2 * c + 1], data.masked[[1, 0]].float())
    assert torch.equal(condition[:, 2 * c + 1 :], data.reference[[1, 0]].float())
    assert torch.equal(audio, data.audio[[1, 0]])


def test_the_autoencoder_learns() -> None:
    """All clips are of one colour: the decoder has to learn no more than that, from mid-grey on."""
    sources = [np.full((n, 8, 16, 24, 3), (230, 20, 240), np.uint8) for n in (2, 1)]
    losses: list[float] = []
    recipe = AutoencoderRecipe(steps=20, batch=2, frames=4, size=16, learning_rate=2e-2, masked=0)
    model = toy_taehv().requires_grad_(True)
    initialise(model)
    model = train_autoencoder(model, sources, torch.ones(16, 24), recipe, seed=0, progress=losses.append)
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:2])
    assert not model.training
    assert encode_clip(model, sources[0][0][:5]).shape == (4, 2, 2, 3)


@torch.no_grad()
def test_a_scale_folded_into_the_encoder_is_exact() -> None:
    model, scale = toy_taehv(), LatentScale(4)
    generator = torch.Generator().manual_seed(0)
    scale.mean.copy_(torch.randn(4, generator=generator))
    scale.variance.copy_(torch.rand(4, generator=generator) * 3 + 0.1)
    video = torch.rand(1, 8, 3, 16, 24, generator=generator)
    latent, _ = model.encode(video, model.encoder_memory(1, 16, 24))
    last = model.encoder[-1]
    assert isinstance(last, nn.Conv2d)
    scale.fold_into(last)
    found, _ = model.encode(video, model.encoder_memory(1, 16, 24))
    torch.testing.assert_close(found[0], scale(latent[0]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, latent, atol=1e-2)


def test_latent_scale_learns_mean_and_variance() -> None:
    scale, generator = LatentScale(4), torch.Generator().manual_seed(0)
    deviation, mean = (
        torch.tensor([0.1, 1.0, 5.0, 2.0])[:, None, None],
        torch.tensor([3.0, 0.0, -2.0, 9.0])[:, None, None],
    )
    for _ in range(100):
        latent = deviation * torch.randn(8, 4, 8, 8, generator=generator) + mean
        scale.update(latent)
    found = scale(latent)
    assert found.mean((0, 2, 3)).abs().max() < 0.2
    assert (found.std((0, 2, 3)) - 1).abs().max() < 0.1


@torch.no_grad()
def test_an_encoded_clip_is_what_a_stream_encodes() -> None:
    """The first frame stands for four, the mouth is grey where the mask says so."""
    model, mask = toy_taehv(), torch.ones(16, 24)
    mask[8:] = 0
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    video = torch.from_numpy(frames[[0, 0, 0, 0, 1, 2, 3, 4]]).permute(0, 3, 1, 2).float() / 255
    video[:, :, 8:] = 0.5
    wanted, _ = model.encode(video[None], model.encoder_memory(1, 16, 24))
    found = encode_clip(model, frames, mask)
    assert found.shape == (4, 2, 2, 3)
    torch.testing.assert_close(found, wanted[0].transpose(0, 1), rtol=0, atol=0.03)  # it runs in bfloat16


def test_picture_loss_is_zero_for_the_same_picture_only() -> None:
    picture = torch.rand(1, 2, 3, 8, 8)
    assert picture_loss(picture, picture) == 0
    shifted = picture_loss(picture + 0.1, picture)
    assert shifted.item() == pytest.approx(0.2, abs=1e-6)  # once for the pixels, once for their coarse mean; no edges


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
        average.update(module)
        values.append(average.module.get_parameter("weight").item())
    assert values[0] == pytest.approx(10 / 11)
    assert np.all(np.diff(values) >= 0)
    assert values[-1] == pytest.approx(1, abs=1e-6)
    assert module.weight.item() == 1


def test_a_checkpoint_comes_back_as_it_went(tmp_path: Path) -> None:
    saved = toy_checkpoint()
    saved.save(tmp_path / "checkpoint")
    found = Checkpoint.load(tmp_path / "checkpoint")
    assert found.student.config == saved.student.config
    assert found.taehv.config == saved.taehv.config
    assert found.model == saved.model
    assert torch.equal(found.text, saved.text)
    assert found.masks.keys() == saved.masks.keys() == {"pixel", "latent", "composite"}
    for name, mask in saved.masks.items():
        assert torch.equal(found.masks[name], mask)
    for ours, theirs in ((found.student, saved.student), (found.taehv, saved.taehv)):
        assert not ours.training
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in ours.state_dict().items())


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    toy_checkpoint().save(tmp_path)
    description = tmp_path / "checkpoint.json"
    description.write_text(description.read_text().replace('"ffn_dim": 40', '"ffn_dim": 48'))
    with pytest.raises(RuntimeError, match=r"ffn\.0\.weight"):
        Checkpoint.load(tmp_path)


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
