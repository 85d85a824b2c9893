"""The linear codec against principal components by NumPy, its decoder against its inverse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lipstream_models import TAEHV, TAEHVConfig
from lipstream_models.config import TINY_TAEHV
from lipstream_training.codec import (
    DecoderRecipe,
    _piece,
    border_error,
    edge_strength,
    encode_clip,
    fit_codec,
    linear_decoder,
    picture_loss,
    train_decoder,
)
from numpy.typing import NDArray

MASK = torch.ones(32, 32)
MASK[4:28, 4:28] = 0


@pytest.fixture(scope="module")
def clips() -> NDArray[np.uint8]:
    """Smooth pictures that move, uint8 [3, 17, 32, 32, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 226, (3, 6, 8, 8, 3)).astype(np.float64)
    return np.repeat(np.repeat(np.repeat(coarse, 3, 1)[:, :17], 4, 2), 4, 3).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted(clips: NDArray[np.uint8]) -> TAEHV:
    torch.manual_seed(0)
    model = TAEHV(TINY_TAEHV)
    fit_codec(model, clips, MASK, blocks=4000)
    return model.eval()


@torch.no_grad()
def test_the_encoder_spans_the_principal_components(clips: NDArray[np.uint8], fitted: TAEHV) -> None:
    weight = fitted.encoder[0].conv.weight.flatten(1).double()
    gram = weight @ weight.T
    off = gram - torch.diag(gram.diag())
    assert off.abs().max() < 1e-5 * gram.diag().max()  # scaled by component, but orthogonal
    rng = np.random.default_rng(1)
    blocks = np.stack(
        [
            clips[n, t : t + 4, y : y + 4, x : x + 4].transpose(0, 3, 1, 2).ravel() / 255 - 0.5
            for n, t, y, x in zip(
                rng.integers(0, 3, 4000), rng.integers(0, 14, 4000), *rng.integers(4, 28, (2, 4000)), strict=True
            )
        ]
    )
    _, singular, _ = np.linalg.svd(blocks, full_matrices=False)
    kept = (singular[: TINY_TAEHV.latent_channels] ** 2).sum() / (singular**2).sum()
    unit = (weight / weight.norm(dim=1, keepdim=True)).numpy()
    found = np.square(blocks @ unit.T).sum() / np.square(blocks).sum()
    assert found == pytest.approx(kept, abs=0.01)
    deviation = (blocks @ weight.numpy().T).std(0)
    variance = np.square(blocks @ unit.T).mean(0)
    np.testing.assert_allclose(np.sqrt((np.square(blocks @ weight.numpy().T)).mean(0)), 2.2 * variance**0.25, rtol=0.05)
    assert np.all(np.diff(deviation[[0, 5, 23]]) < 0)


@torch.no_grad()
def test_the_decoder_starts_as_the_inverse(clips: NDArray[np.uint8], fitted: TAEHV) -> None:
    latent = encode_clip(fitted, clips[0])
    assert latent.shape == (24, 5, 8, 8)
    out, after = fitted.decode(latent.transpose(0, 1)[None], fitted.decoder_memory(1, 32, 32))
    weight = fitted.encoder[0].conv.weight.flatten(1)
    back = torch.linalg.pinv(weight)
    blocks = torch.einsum("pc,cfyx->fyxp", back, latent).reshape(5, 8, 8, 4, 3, 4, 4)
    wanted = blocks.permute(0, 3, 4, 1, 5, 2, 6).reshape(20, 3, 32, 32) + 0.5
    assert len(after) == 6
    assert (out[0] - wanted.clamp(0, 1)).abs().mean() < 0.01
    assert (out[0] - wanted.clamp(0, 1)).abs().max() < 0.1
    torch.testing.assert_close(linear_decoder(fitted)(latent.transpose(0, 1)).flatten(0, 1), wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_grey_is_zero_and_a_mask_is_grey(clips: NDArray[np.uint8], fitted: TAEHV) -> None:
    latent = encode_clip(fitted, clips[0], MASK)
    assert latent[:, :, 1:7, 1:7].abs().max() < 1e-6
    assert torch.equal(latent[:, :, 0], encode_clip(fitted, clips[0])[:, :, 0])


@torch.no_grad()
def test_a_clip_cut_anywhere_decodes_to_the_same_frames(fitted: TAEHV) -> None:
    latent = torch.randn(1, 5, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, _ = fitted.decode(latent, fitted.decoder_memory(1, 32, 32))
    memory, parts = fitted.decoder_memory(1, 32, 32), []
    for piece in latent.split([1, 3, 1], dim=1):
        out, memory = fitted.decode(piece, memory)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


def test_a_decoder_too_narrow_for_its_latents_is_refused(clips: NDArray[np.uint8]) -> None:
    for widths in ((80, 32, 32, 16), (80, 64, 16, 16)):
        with pytest.raises(AssertionError, match="too narrow"):
            fit_codec(TAEHV(replace(TINY_TAEHV, decoder_widths=widths)), clips, MASK, blocks=200)


def test_the_decoder_learns_and_the_encoder_is_frozen(clips: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    model = TAEHV(TINY_TAEHV)
    fit_codec(model, clips, MASK, blocks=1000)
    before = model.encoder[0].conv.weight.clone()
    truth = torch.stack([encode_clip(model, clip) for clip in clips])
    losses: list[float] = []
    recipe = DecoderRecipe(steps=12, batch=2, size=6, learning_rate=2e-3)
    train_decoder(model, clips, truth, 0.5 * truth, recipe, seed=0, progress=losses.append)
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert torch.equal(model.encoder[0].conv.weight, before)


def test_picture_loss_is_zero_for_the_same_picture_only() -> None:
    picture = torch.rand(1, 2, 3, 16, 16)
    assert picture_loss(picture, picture, detail=1.0) == 0
    shifted = picture_loss(picture + 0.1, picture)
    assert shifted.item() == pytest.approx(0.2, abs=1e-6)  # pixels and their coarse mean; no edges, no colour
    red = picture.clone()
    red[:, :, 0] += 0.3
    assert picture_loss(red, picture).item() == pytest.approx(0.1 + 0.1 + 2 * (0.2 + 0.1 + 0.1) / 3, abs=1e-5)


def test_edge_strength_ignores_the_position_of_edges() -> None:
    stripes = torch.zeros(1, 1, 3, 16, 16)
    stripes[..., ::2] = 1
    moved = stripes.roll(1, -1)
    assert (edge_strength(stripes) - edge_strength(moved)).abs().max() < 1e-6
    flat = torch.full_like(stripes, 0.5)
    assert (edge_strength(stripes) - edge_strength(flat)).abs().mean() > 0.9


def test_the_released_sizes_have_none_of_these_layers() -> None:
    model = TAEHV(TAEHVConfig())
    assert len(model.encoder_memory(1, 64, 64)) == len(model.decoder_memory(1, 64, 64)) == 9
    assert [tuple(m.shape[2:]) for m in model.decoder_memory(1, 64, 64)[::3]] == [(8, 8), (16, 16), (32, 32)]


def test_border_error_counts_the_borders_of_tokens_alone() -> None:
    """Blocks of 8 pixels, each a little off by itself, against the same steps two pixels beside the borders."""
    true = torch.full((1, 2, 3, 32, 40), 0.5)
    shifts = torch.linspace(-0.1, 0.1, 20).reshape(4, 5)[torch.randperm(4, generator=torch.Generator().manual_seed(0))]
    blocks = true + shifts.repeat_interleave(8, 0).repeat_interleave(8, 1)
    steps = 0.5 * (shifts.diff(dim=0).abs().mean() + shifts.diff(dim=1).abs().mean()) * 2
    assert border_error(blocks, true, 8).item() == pytest.approx(steps.item(), rel=1e-5)
    assert border_error(blocks.roll((2, 2), (-2, -1)), true, 8) < 1e-6
    assert border_error(blocks, blocks, 8) == 0


def test_pieces_begin_with_a_whole_token(clips: NDArray[np.uint8], fitted: TAEHV) -> None:
    """Else the borders of the loss would not be those of the student's tokens."""
    latents = torch.stack([encode_clip(fitted, clip) for clip in clips])
    recipe, rng = DecoderRecipe(frames=2, size=4), np.random.default_rng(0)
    found = set()
    for _ in range(60):
        latent, video = _piece(clips, latents, fitted, recipe, rng)
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            for clip in latents
            for first in range(1, clip.shape[1] - 1)
            if torch.equal(clip[:, first : first + 2, top : top + 4, left : left + 4].transpose(0, 1), latent)
        ]
        assert places
        assert video.shape == (8, 3, 16, 16)
        found |= {*places}
    assert found == {(top, left) for top in (0, 3) for left in (0, 3)}
