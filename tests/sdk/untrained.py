"""A bundle of the tiny student's sizes and graphs, for a source tree in which none has been trained yet."""

from __future__ import annotations

from pathlib import Path

import torch
from lipstream_export.bundle import Parts, export_bundle
from lipstream_training.data.mask import compositing_mask, latent_mask, mouth_mask
from lipstream_training.models import STUDENTS, TAEHV, CausalDiT
from lipstream_training.models.config import TINY_TAEHV
from toys import randomise


def untrained_bundle(path: Path) -> Path:
    """Write it to folder `path`."""
    config = STUDENTS["tiny"]
    size = 8 * config.latent_size[0]
    torch.manual_seed(0)
    student, taehv = CausalDiT(config).eval().requires_grad_(False), TAEHV(TINY_TAEHV).eval().requires_grad_(False)
    randomise(student)
    masks = {"pixel": mouth_mask(size), "latent": latent_mask(size), "composite": compositing_mask(size)}
    parts = Parts(
        student,
        torch.randn(config.text_len, config.text_dim),
        taehv,
        {name: torch.from_numpy(mask) for name, mask in masks.items()},
        {"name": "untrained"},
    )
    return export_bundle(parts, config, path).path
