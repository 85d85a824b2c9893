"""The Wan VAE: against diffusers' on the same random weights, and streamed against the clip in one piece."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import AutoencoderKLWan
from lipstream_export.precision import to_bfloat16
from lipstream_models import WanVAE, WanVAEConfig
from lipstream_models.parts import StudentParts
from lipstream_models.wan_vae import MEAN, STD
from torch import Tensor, nn
from toys import CONFIG as STUDENT
from toys import randomise

CONFIG = WanVAEConfig(dim=8)


def random_vae(config: WanVAEConfig = CONFIG) -> WanVAE:
    torch.manual_seed(0)
    model = WanVAE(config).eval().requires_grad_(False)
    randomise(model)
    return model


def _renamed(name: str) -> str:
    """A released name as diffusers has it."""
    residual = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
    for ours, theirs in residual.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    name = name.replace(".shortcut.", ".conv_shortcut.")
    name = re.sub(r"middle\.1\.", "mid_block.attentions.0.", name)
    name = re.sub(r"middle\.([02])\.", lambda m: f"mid_block.resnets.{int(m[1]) // 2}.", name)
    name = name.replace(".head.0.", ".norm_out.").replace(".head.2.", ".conv_out.")
    name = re.sub(r"^(encoder|decoder)\.conv1\.", r"\1.conv_in.", name)
    name = re.sub(r"^conv1\.", "quant_conv.", name)
    name = re.sub(r"^conv2\.", "post_quant_conv.", name)
    name = name.replace("downsamples.", "down_blocks.")

    def up(match: re.Match[str]) -> str:
        stage, layer = divmod(int(match[1]), 4)
        return f"up_blocks.{stage}." + (f"resnets.{layer}." if layer < 3 else "upsamplers.0.")

    return re.sub(r"upsamples\.(\d+)\.", up, name)


def diffusers_vae(ours: WanVAE) -> AutoencoderKLWan:
    model = AutoencoderKLWan(base_dim=CONFIG.dim, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2)
    model.load_state_dict({_renamed(name): x for name, x in ours.state_dict().items()})
    return model.eval().requires_grad_(False)


def test_encoding_and_decoding_are_those_of_diffusers() -> None:
    ours = random_vae()
    theirs = diffusers_vae(ours)
    video, latent = torch.rand(1, 13, 3, 32, 48), torch.randn(1, 4, 16, 4, 6)
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (MEAN, STD))
    expected = (theirs.encode(2 * video.transpose(1, 2) - 1).latent_dist.mean - mean) / std
    clip = torch.cat([video[:, :1].repeat(1, 3, 1, 1, 1), video], dim=1)
    found, _ = ours.encode(clip, ours.encoder_memory(1, 32, 48))
    assert relative(found.transpose(1, 2), expected) < 1e-4
    expected = theirs.decode(latent.transpose(1, 2) * std + mean).sample
    found, _ = ours.decode(latent, ours.decoder_memory(1, 32, 48))
    assert relative(2 * found[:, 3:].transpose(1, 2) - 1, expected.clamp(-1, 1)) < 1e-4


def test_bfloat16_is_close_to_diffusers_in_float32() -> None:
    ours = random_vae()
    theirs, low = diffusers_vae(ours), to_bfloat16(StudentParts(STUDENT, wan=ours)).wan
    assert low
    video, latent = torch.rand(1, 12, 3, 32, 48), torch.randn(1, 4, 16, 4, 6)
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (MEAN, STD))
    expected = (theirs.encode(2 * video[:, 3:].transpose(1, 2) - 1).latent_dist.mean - mean) / std
    clip = torch.cat([video[:, 3:4].repeat(1, 3, 1, 1, 1), video[:, 3:]], dim=1)
    found, _ = low.encode(clip, low.encoder_memory(1, 32, 48))
    assert 1e-4 < relative(found.transpose(1, 2), expected) < 2e-2
    expected = theirs.decode(latent.transpose(1, 2) * std + mean).sample.clamp(-1, 1)
    found, _ = low.decode(latent, low.decoder_memory(1, 32, 48))
    assert 1e-4 < relative(2 * found[:, 3:].transpose(1, 2) - 1, expected) < 2e-2


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("cuts", [[3, 3], [1, 5], [2, 1, 3], [1, 1, 1, 1, 1, 1]])
def test_a_stream_cut_anywhere_equals_the_clip(cuts: list[int]) -> None:
    model = random_vae()
    video, latent = torch.rand(2, 24, 3, 16, 16), torch.randn(1, 6, 16, 2, 2)
    whole, _ = model.encode(video, model.encoder_memory(2, 16, 16))
    picture, _ = model.decode(latent, model.decoder_memory(1, 16, 16))
    encoder, decoder = model.encoder_memory(2, 16, 16), model.decoder_memory(1, 16, 16)
    parts: list[Tensor] = []
    pictures: list[Tensor] = []
    for frames, latents in zip(video.split([4 * n for n in cuts], 1), latent.split(cuts, 1), strict=True):
        part, encoder = model.encode(frames, encoder)
        parts.append(part)
        part, decoder = model.decode(latents, decoder)
        pictures.append(part)
    assert relative(torch.cat(parts, 1), whole) < 1e-5
    assert relative(torch.cat(pictures, 1)[:, 3:], picture[:, 3:]) < 1e-5


def test_frames_before_the_first_have_no_effect() -> None:
    model = random_vae()
    video = torch.rand(1, 12, 3, 16, 16)
    other = video.clone()
    other[:, :3] = torch.rand(1, 3, 3, 16, 16)
    memory = model.encoder_memory(1, 16, 16)
    assert torch.equal(model.encode(video, memory)[0], model.encode(other, memory)[0])
    _, later = model.encode(video, memory)
    assert not torch.equal(model.encode(video, later)[0], model.encode(other, later)[0])


def test_samples_of_a_batch_are_independent() -> None:
    model = random_vae()
    video = torch.rand(2, 12, 3, 16, 16)
    both, _ = model.encode(video, model.encoder_memory(2, 16, 16))
    alone, _ = model.encode(video[1:], model.encoder_memory(1, 16, 16))
    assert relative(both[1:], alone) < 1e-5


@pytest.fixture
def same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions that add in one order, whatever batch and height; oneDNN's do not."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


HEIGHT = 64


def encoded(model: WanVAE, video: Tensor, shared: int) -> list[Tensor]:
    """The latents of a stream of calls with 4, 12 and 8 frames."""
    memory = model.encoder_memory(len(video), HEIGHT, 16, shared)
    sizes = [x.shape for x in memory]
    latents: list[Tensor] = []
    for frames in video.split([4, 12, 8], dim=1):
        found, memory = model.encode(frames, memory, shared)
        latents.append(found)
    assert [x.shape for x in memory] == sizes
    return latents


def alike(rows: int) -> Tensor:
    """Two videos, the second with other pixels below its first `rows` rows."""
    first, other = torch.rand(2, 1, 24, 3, HEIGHT, 16, generator=torch.Generator().manual_seed(0))
    return torch.cat([first, torch.cat([first[..., :rows, :], other[..., rows:, :]], dim=-2)])


@pytest.mark.parametrize(
    ("rows", "starts"), [(0, []), (13, []), (18, [6]), (33, [20, 4]), (47, [34, 10]), (64, [52, 20, 2])]
)
def test_shared_rows_are_computed_once(same_sums: None, rows: int, starts: list[int]) -> None:
    model = random_vae(WanVAEConfig(dim=4))
    assert [level.start for level in model.encoder.levels(rows)[0]] == starts
    video = alike(rows)
    for found, expected in zip(encoded(model, video, rows), encoded(model, video, 0), strict=True):
        assert torch.equal(found, expected)


def test_shared_rows_of_a_larger_batch(same_sums: None) -> None:
    model = random_vae(WanVAEConfig(dim=4))
    (a, b), (c, d) = alike(33), alike(40)
    video = torch.stack([a, c, b, d])
    for found, expected in zip(encoded(model, video, 33), encoded(model, video, 0), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("rows", [33, 47])
def test_one_more_shared_row_would_be_wrong(same_sums: None, rows: int) -> None:
    """No row is taken from the first video that need not be: at these numbers no rounding leaves a row to spare."""
    model = random_vae(WanVAEConfig(dim=4))
    video = alike(rows)
    for found, expected in zip(encoded(model, video, rows + 1), encoded(model, video, 0), strict=True):
        assert torch.equal(found[0], expected[0])
        assert relative(found[1], expected[1]) > 1e-5


def test_the_released_sizes() -> None:
    """Counts of the released file, and sizes found again in the weights."""
    with torch.device("meta"):
        model = WanVAE(WanVAEConfig())
    weights = model.state_dict()
    assert len(weights) == 194
    assert sum(x.numel() for x in weights.values()) == pytest.approx(126.9e6, rel=1e-3)
    halves = {half: sum(x.numel() for x in getattr(model, half).parameters()) for half in ("encoder", "decoder")}
    assert halves == {"encoder": pytest.approx(53.6e6, rel=2e-3), "decoder": pytest.approx(73.3e6, rel=2e-3)}
    assert [(level.start, level.shared) for level in model.encoder.levels(190)[0]] == [(178, 92), (82, 43), (34, 19)]
    assert WanVAEConfig.of(weights) == WanVAEConfig()
    for config in (CONFIG, WanVAEConfig(4, 8, (1, 1, 3), 1, (True, False)), WanVAEConfig(4, 4, (2, 1), 3, (True,))):
        assert WanVAEConfig.of(WanVAE(config).state_dict()) == config


def test_bfloat16_weights_compute_nearly_the_same() -> None:
    model = random_vae()
    video = torch.rand(1, 12, 3, 16, 16)
    exact, _ = model.encode(video, model.encoder_memory(1, 16, 16))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            layer.to(torch.bfloat16)
    rounded, memory = model.encode(video, model.encoder_memory(1, 16, 16))
    assert 1e-4 < relative(rounded, exact) < 2e-2
    assert {x.dtype for x in memory[1:]} == {torch.bfloat16}
