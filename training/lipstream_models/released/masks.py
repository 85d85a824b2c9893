"""The published mask picture, 256 x 256, white where the source is kept, and the three masks derived from it.

Sizes and kinds of interpolation are those of the upstream scripts (LatentSync's mask.png; it is not shipped with us).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from lipstream.errors import CheckpointError
from torch import Tensor
from torch.nn import functional as F

from .. import StudentConfig


def load_masks(path: Path, config: StudentConfig) -> dict[str, Tensor]:
    """`pixel` [H, W] and `latent` [h, w], 1 = keep, and `composite` [H, W] in [0, 1], soft at the edge.

    Raises:
        CheckpointError: no picture, or one that keeps everything or nothing.
    """
    data = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if picture is None:
        raise CheckpointError(f"{path} is no picture", expected="the mask: white is kept, black is generated")
    height, width = config.crop_size
    kept = picture.astype(np.float32) / 255
    pixel = cv2.resize(kept, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    latent = F.interpolate(torch.from_numpy(kept)[None, None], config.latent_size, mode="bilinear")[0, 0] > 0.5
    soft = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LANCZOS4).astype(np.float32) / 255
    masks = {"pixel": torch.from_numpy(pixel).float(), "latent": latent.float(), "composite": torch.from_numpy(soft)}
    if not 0 < masks["latent"].mean() < 1:
        raise CheckpointError(f"{path} is all black or all white", expected="the mask: white is kept, black generated")
    return masks
