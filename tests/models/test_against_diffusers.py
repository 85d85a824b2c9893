"""The transformer against another implementation: the text-to-video Wan 2.1 of `diffusers`, with the same weights."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from lipstream_export.precision import to_bfloat16
from lipstream_models import CausalDiT, ClipAttention
from lipstream_models.parts import StudentParts
from toys import CONFIG, toy_student, toy_text

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")

# Name in diffusers -> name here, in this order. There norm2 is the norm before cross-attention.
RENAMED = [
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"^proj_out", "head.head"),
    (r"^scale_shift_table", "head.modulation"),
    (r"scale_shift_table", "modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
]


def rename(name: str) -> str:
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    return name


@torch.no_grad()
def base_model(dim: int) -> tuple[CausalDiT, torch.nn.Module]:
    """A student whose condition and audio have no effect, and diffusers' model with the same weights."""
    config = replace(CONFIG, dim=dim)
    student = toy_student(config)
    channels = config.latent_channels
    student.patch_embedding.weight[:, channels:] = 0
    for parameter in student.audio_cond_projs.parameters():
        parameter.zero_()
    other = diffusers.WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=channels,
        out_channels=channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
    ).eval()
    ours = student.state_dict()
    ours["patch_embedding.weight"] = ours["patch_embedding.weight"][:, :channels]
    theirs = {name: ours.pop(rename(name)) for name in other.state_dict()}
    assert {name.partition(".")[0] for name in ours} <= {"audio_proj", "audio_cond_projs"}
    other.load_state_dict(theirs)
    return student, other


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0, 1e-4), ("bf16", 1e-4, 2e-2)])
@pytest.mark.parametrize("frames", [3, 6])
@pytest.mark.parametrize("head_dim", [12, 16, 128])
def test_velocity_is_that_of_diffusers(head_dim: int, frames: int, precision: str, least: float, most: float) -> None:
    """One pass over one or two chunks; in bfloat16, too, against diffusers' in float32."""
    student, other = base_model(2 * head_dim)
    if precision == "bf16":
        student = to_bfloat16(StudentParts(student.config, student, toy_text(student.config))).student
    config = student.config
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, config.latent_channels, frames, *config.latent_size, generator=generator)
    condition = torch.randn(1, 3 * config.latent_channels + 1, frames, *config.latent_size, generator=generator)
    audio, text = torch.randn(1, 4 * frames, config.audio_dim), toy_text(config)[None]
    for t in (0.999, 0.769, 0.0):
        with torch.no_grad():
            wanted = other(latent, torch.tensor([1000 * t]), text, return_dict=False)[0]
            attend = ClipAttention(config, frames, causal=False)
            time = torch.full((1, frames), t, dtype=torch.float64)
            found = student(latent, condition, audio, time, student.text_kv(text), attend)
        assert least < (found - wanted).norm() / wanted.norm() < most
