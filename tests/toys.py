"""Models with the product's architecture at sizes for tests, with random weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from lipstream_models import TAEHV, CausalDiT, SpeechEncoder, StudentConfig, TAEHVConfig
from lipstream_models.layers import round_to_bfloat16
from lipstream_models.parts import StudentParts
from torch import nn

torch.set_num_threads(1)  # at these sizes threads cost more than they give

CONFIG = StudentConfig(
    dim=24,
    ffn_dim=40,
    num_heads=2,
    num_layers=4,
    latent_size=(4, 6),
    latent_channels=4,
    text_dim=8,
    text_len=3,
    audio_dim=SpeechEncoder.features,
    audio_hidden=6,
)
TAEHV_CONFIG = TAEHVConfig(encoder_width=4, decoder_widths=(8, 6, 4, 4), latent_channels=4)

RELEASED = StudentConfig(
    dim=24,
    ffn_dim=40,
    num_heads=2,
    num_layers=4,
    latent_size=(8, 8),
    text_dim=8,
    text_len=4,
    audio_dim=64,
    audio_hidden=8,
)
"""Fits the codecs as released, and a wav2vec 2.0 of `WAV2VEC_SIZES`."""

WAV2VEC_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
"""Sizes of a wav2vec 2.0, by transformers' names; it gives 64 features."""


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Change every parameter, so that none has an initial value (0, 1) that could hide an error."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def toy_student(config: StudentConfig = CONFIG, seed: int = 0) -> CausalDiT:
    torch.manual_seed(seed)
    student = CausalDiT(config).eval().requires_grad_(False)
    randomise(student, seed)
    return student


def toy_taehv(config: TAEHVConfig = TAEHV_CONFIG, seed: int = 0) -> TAEHV:
    torch.manual_seed(seed)
    return TAEHV(config).eval().requires_grad_(False)


def toy_speech(seed: int = 0) -> SpeechEncoder:
    torch.manual_seed(seed)
    return SpeechEncoder().eval().requires_grad_(False)


def toy_text(config: StudentConfig = CONFIG, seed: int = 0) -> torch.Tensor:
    return torch.randn(config.text_len, config.text_dim, generator=torch.Generator().manual_seed(seed))


def toy_parts(config: StudentConfig = CONFIG, seed: int = 0) -> StudentParts:
    """All parts of a student, its weights rounded to bfloat16 as a trained one's are; its TAEHV's are not."""
    student = toy_student(config, seed)
    round_to_bfloat16(student)
    height, width = config.latent_size
    picture, cell = torch.ones(config.crop_size), torch.ones(height, width)
    picture[config.crop_size[0] // 2 :, config.spatial : -config.spatial] = 0
    cell[height // 2 :, 1:-1] = 0
    masks = {"pixel": picture, "latent": cell, "composite": picture * 0.5}
    taehv = toy_taehv(replace(TAEHV_CONFIG, latent_channels=config.latent_channels), seed)
    text, speech = toy_text(config, seed), toy_speech(seed)
    return StudentParts(config, student, text, taehv, speech, masks, {"name": "toy"})
