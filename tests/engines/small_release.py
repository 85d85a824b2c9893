"""Bundles with every graph of a released one, small and with random weights: the operators and head sizes that matter.

The Wan VAE's head is wider than a fused kernel takes, and wav2vec 2.0 is in float32. The student is in the fp8 bundle;
`test_build` builds one in bf16.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from lipstream.bundle import Bundle
from lipstream_export.bundle import export_bundle
from lipstream_export.precision import quantise, to_bfloat16
from lipstream_export.precision.fp8 import linear_layers
from lipstream_models import WanVAE, WanVAEConfig
from lipstream_models.released.wav2vec import LiveWav2Vec
from toys import CONFIG, WAV2VEC_SIZES, randomise, toy_parts
from transformers import Wav2Vec2Config, Wav2Vec2Model


def small_release(folder: Path, codec: str, precision: str) -> Bundle:
    """Write the bundle in "bf16" or "fp8" (every linear layer), both halves of its codec "wan" or "taehv"."""
    torch.manual_seed(0)
    # Released files are loaded with this attention, too.
    model = Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC_SIZES, attn_implementation="eager")).eval().requires_grad_(False)
    randomise(model)
    speech = LiveWav2Vec(model, lookback=0.4, lookahead=0.08)
    config = replace(CONFIG, spatial=8, latent_size=(4, 4), dim=64, num_layers=2, audio_dim=speech.features)
    wan = WanVAE(WanVAEConfig(dim=66, latent_channels=config.latent_channels)).eval().requires_grad_(False)
    parts = replace(toy_parts(config), speech=speech, wan=wan, encoder=codec, decoder=codec)
    if precision == "bf16":
        return export_bundle(to_bfloat16(replace(parts, student=None)), folder, precision=precision)
    parts = to_bfloat16(parts.with_constants())
    assert parts.student
    student = quantise(parts.student, dict.fromkeys(linear_layers(parts.student), 8.0))
    return export_bundle(replace(parts, student=student), folder, precision=precision)
