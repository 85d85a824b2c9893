"""Write the files of a release with random weights, at full size, as input of `lipstream export` for tests and timing.

The cost of a pass does not depend on the weights. The pictures are meaningless.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lipstream_models import STUDENTS, TAEHV, CausalDiT, TAEHVConfig, WanVAE, WanVAEConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from .common import main

NAMES = {"student": "student.pth", "vae": "Wan2.1_VAE.pth", "taehv": "taew2_1.pth", "wav2vec": "wav2vec2"}
NAMES |= {"text": "prompt.pt", "mask": "mask.png"}


def write_release(
    size: str, folder: Path, *, wan: WanVAEConfig | None = None, wav2vec: Wav2Vec2Config | None = None
) -> list[str]:
    """Write the files of a release.

    Args:
        size: of the student, "1.3b" or "14b". folder: is created. wan, wav2vec: sizes other than the published ones.

    Returns:
        the arguments of `lipstream export` that name them.
    """
    config = STUDENTS[size]
    folder.mkdir(parents=True, exist_ok=True)
    at = {role: folder / name for role, name in NAMES.items()}
    with torch.device("meta"):
        student, vae, taehv = CausalDiT(config), WanVAE(wan or WanVAEConfig()), TAEHV(TAEHVConfig())
    torch.save(random_weights(student, torch.bfloat16), at["student"])
    torch.save(random_weights(vae, torch.float32), at["vae"])
    torch.save(random_weights(taehv, torch.float32), at["taehv"])
    model = Wav2Vec2Model(wav2vec or Wav2Vec2Config())  # the defaults are those of wav2vec2-base
    at["wav2vec"].mkdir(exist_ok=True)
    (at["wav2vec"] / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, at["wav2vec"] / "model.safetensors")
    torch.save(torch.randn(config.text_len, config.text_dim), at["text"])
    height, width = config.crop_size
    mask = np.full((height, width), 255, np.uint8)
    cv2.ellipse(mask, (width // 2, 5 * height // 8), (width // 3, height // 3), 0, 0, 360, 0, -1)
    cv2.imwrite(str(at["mask"]), mask)
    return ["--model", size, *(text for role, path in at.items() for text in (f"--{role}", str(path)))]


def random_weights(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Fill with random weights scaled so that each layer keeps the magnitude of its input; one tensor at a time.

    Args:
        module: on the device "meta".
    """
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, x in module.state_dict().items():
        fan_in = max(x[0].numel(), 1) if x.dim() > 1 else 1
        weights[name] = torch.empty(x.shape, dtype=dtype).normal_(std=fan_in**-0.5, generator=generator)
    return weights


def run(args: argparse.Namespace) -> bool:
    print(" ".join(write_release(args.size, args.folder)))
    return True


def build_parser() -> argparse.ArgumentParser:
    options: Any = argparse.ArgumentParser(prog="python -m benchmarks.random_release", description=__doc__)
    options.add_argument("size", choices=STUDENTS, help="of the student")
    options.add_argument("folder", type=Path, help="where the files go")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
