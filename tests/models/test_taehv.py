"""The tiny video autoencoder: released names and sizes, and a stream cut anywhere against the clip in one piece."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream_models import TAEHV, TAEHVConfig
from lipstream_models.taehv import TGrow, TPool
from torch import nn
from toys import TAEHV_CONFIG, toy_taehv

cuts = st.lists(st.integers(1, 3), min_size=1, max_size=4)


def test_released_sizes() -> None:
    with torch.device("meta"):
        state = TAEHV(TAEHVConfig()).state_dict()
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    for half, millions in (("decoder", 9.84), ("encoder", 1.47)):
        assert round(sum(x.numel() for name, x in state.items() if name.startswith(half)) / 1e6, 2) == millions
    expected = {
        "decoder.1.weight": (256, 16, 3, 3),
        "decoder.3.conv.0.weight": (256, 512, 3, 3),
        "decoder.7.conv.weight": (256, 256, 1, 1),
        "decoder.8.weight": (128, 256, 3, 3),
        "decoder.13.conv.weight": (256, 128, 1, 1),
        "decoder.14.weight": (64, 128, 3, 3),
        "decoder.19.conv.weight": (128, 64, 1, 1),
        "decoder.20.weight": (64, 64, 3, 3),
        "decoder.22.weight": (3, 64, 3, 3),
        "encoder.0.weight": (64, 3, 3, 3),
        "encoder.2.conv.weight": (64, 128, 1, 1),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "decoder.8.bias" not in shapes
    assert "decoder.13.conv.bias" not in shapes


def test_stream_state_at_512_is_the_published_one() -> None:
    with torch.device("meta"):
        memory = TAEHV(TAEHVConfig()).half().decoder_memory(1, 512, 512)
    assert [tuple(x.shape[1:]) for x in memory] == [(256, 64, 64)] * 3 + [(128, 128, 128)] * 3 + [(64, 256, 256)] * 3
    assert round(sum(x.numel() * 2 for x in memory) / 1e6) == 44


@given(cuts, st.integers(0, 99))
@settings(max_examples=15)
def test_a_decoder_cut_anywhere_gives_the_same_frames(parts: list[int], seed: int) -> None:
    model = toy_taehv(seed=seed)
    latent = torch.randn(1, sum(parts), 4, 2, 3, generator=torch.Generator().manual_seed(seed))
    whole, _ = model.decode(latent, model.decoder_memory(1, 16, 24), clamp=False)
    memory, pieces = model.decoder_memory(1, 16, 24), []
    for part in torch.split(latent, parts, dim=1):
        piece, memory = model.decode(part, memory, clamp=False)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)


@given(cuts, st.integers(0, 99))
@settings(max_examples=15)
def test_an_encoder_cut_anywhere_gives_the_same_latents(parts: list[int], seed: int) -> None:
    model = toy_taehv(seed=seed)
    video = torch.rand(2, 4 * sum(parts), 3, 16, 24, generator=torch.Generator().manual_seed(seed))
    whole, _ = model.encode(video, model.encoder_memory(2, 16, 24))
    memory, pieces = model.encoder_memory(2, 16, 24), []
    for part in torch.split(video, [4 * n for n in parts], dim=1):
        piece, memory = model.encode(part, memory)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)


def test_memory_affects_the_result() -> None:
    """A model without memory would pass the two tests above; this one excludes it."""
    model = toy_taehv()
    latent = torch.randn(1, 2, 4, 2, 3)
    whole, _ = model.decode(latent, model.decoder_memory(1, 16, 24), clamp=False)
    forgotten, _ = model.decode(latent[:, 1:], model.decoder_memory(1, 16, 24), clamp=False)
    assert not torch.allclose(forgotten, whole[:, 4:], atol=1e-4)


def test_decoder_is_causal() -> None:
    model = toy_taehv()
    latent = torch.randn(1, 3, 4, 2, 3)
    before, _ = model.decode(latent, model.decoder_memory(1, 16, 24))
    latent[:, 2] += 1
    after, _ = model.decode(latent, model.decoder_memory(1, 16, 24))
    assert torch.equal(after[:, :8], before[:, :8])


@torch.no_grad()
def test_clamping_is_into_zero_to_one() -> None:
    model = toy_taehv()
    last = model.decoder[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias.copy_(torch.tensor([5.0, -5.0, 0.5]))
    latent = torch.randn(1, 1, 4, 2, 3)
    raw, _ = model.decode(latent, model.decoder_memory(1, 16, 24), clamp=False)
    clamped, _ = model.decode(latent, model.decoder_memory(1, 16, 24))
    assert torch.equal(clamped, raw.clamp(0, 1))
    assert not torch.equal(clamped, raw)


@pytest.mark.parametrize("stride", [1, 2])
def test_pool_and_grow_keep_frames_in_order(stride: int) -> None:
    """With identity weights `TGrow` inverts `TPool`, whose frames are adjacent in the channels."""
    grow = TGrow(3, stride)
    grow.conv.weight.data.zero_()
    for i in range(stride):
        for channel in range(3):
            grow.conv.weight.data[3 * i + channel, channel] = i + 1
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(grow(x), torch.stack([x * (i + 1) for i in range(stride)], 1).flatten(0, 1))
    pool = TPool(3, stride)
    weight = torch.unflatten(pool.conv.weight.detach()[:, :, 0, 0], 1, (stride, 3))
    wanted = torch.einsum("nsihw,osi->nohw", torch.unflatten(x, 0, (-1, stride)), weight)
    torch.testing.assert_close(pool(x), wanted)


def test_widths_are_the_configuration() -> None:
    model = toy_taehv()
    assert isinstance(model.encoder[0], nn.Conv2d)
    assert model.encoder[0].out_channels == TAEHV_CONFIG.encoder_width
    assert model.decode(torch.zeros(1, 1, 4, 2, 3), model.decoder_memory(1, 16, 24))[0].shape == (1, 4, 3, 16, 24)
