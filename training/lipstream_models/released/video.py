"""The released video autoencoders: ``Wan2.1_VAE.pth`` and ``taew2_1.pth``."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import TAEHV, TAEHVConfig, WanVAE, WanVAEConfig
from .files import open_weights, require_shapes


def load_wan_vae(path: Path) -> WanVAE:
    """The Wan VAE of a file, of any width.

    Raises:
        CheckpointError: as `open_weights`, or the file holds another model.
    """
    weights = open_weights(path)
    try:
        config = WanVAEConfig.of(weights)
    except (KeyError, IndexError):
        config = WanVAEConfig()
    with torch.device("meta"):
        model = WanVAE(config)
    require_shapes(path, weights, model.state_dict(), "the Wan 2.1 VAE")
    model = WanVAE(config)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def load_taehv(path: Path) -> TAEHV:
    """The TAEHV of a file.

    `TGrow` layers of a file that was made for a larger stride have more rows than ours; the last ones are used.

    Raises:
        CheckpointError: as `open_weights`, or the file holds another model.
    """
    weights = open_weights(path)
    model = TAEHV(TAEHVConfig())
    wanted = model.state_dict()
    for name in ("decoder.7.conv.weight", "decoder.13.conv.weight", "decoder.19.conv.weight"):
        if name in weights and weights[name].shape[0] > wanted[name].shape[0]:
            weights[name] = weights[name][-wanted[name].shape[0] :]
    require_shapes(path, weights, wanted, "TAEHV (taew2_1)")
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
