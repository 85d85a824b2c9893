"""Latents and features, computed ahead and kept beside the pictures, or when a clip is read: the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lipstream.errors import CheckpointError
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..codec import encode_clip
from ..data.mouth import SAMPLES_PER_FRAME
from ..models.mel import LOOKAHEAD, LOOKBACK
from .sample import Sample
from .settings import FRAMES, PAST


class Encoder:
    """The codec and the ear of a student.

    Args:
        checkpoint: folder that `lipstream-train` wrote.

    Attributes:
        text: the prompt's embedding, float32 [text_len, text_dim].
    """

    def __init__(self, checkpoint: Path) -> None:
        try:
            student = Checkpoint.load(checkpoint)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{checkpoint} is no checkpoint: {str(error).splitlines()[0]}", expected="a folder of lipstream-train"
            ) from error
        self._taehv, self._speech, self._mask = student.taehv, student.speech, student.masks["pixel"]
        self.text = student.text.numpy()

    @torch.inference_mode()
    def encode(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """`target`, `masked` (the reference without its mouth) and `reference`, float16 [C, latent frames, h, w];
        `first`, of the identity; `audio`, float32 [81, features]."""
        taehv, mask = self._taehv, self._mask
        latents = {
            "target": encode_clip(taehv, sample.target),
            "masked": encode_clip(taehv, sample.reference, mask),
            "reference": encode_clip(taehv, sample.reference),
            "first": encode_clip(taehv, sample.identity[None]),
        }
        begin = PAST * SAMPLES_PER_FRAME
        heard = sample.sound[None, begin - LOOKBACK : begin + FRAMES * SAMPLES_PER_FRAME + LOOKAHEAD]
        audio = self._speech(torch.from_numpy(np.ascontiguousarray(heard)))[0]
        return {name: x.half().numpy() for name, x in latents.items()} | {"audio": audio.numpy()}
