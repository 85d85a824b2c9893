"""Latents and features, computed ahead and kept beside the pictures, or when a clip is read: the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lipstream.errors import CheckpointError
from lipstream_models import TAEHV, StudentConfig, WanVAE
from lipstream_models.checkpoint import Checkpoint
from lipstream_models.mel import LOOKAHEAD, LOOKBACK
from lipstream_models.released import load_wan_vae
from lipstream_models.released.masks import load_masks
from lipstream_models.released.text import load_text
from lipstream_models.released.wav2vec import hidden_states, load_wav2vec
from numpy.typing import NDArray
from torch import Tensor

from ..codec import encode_clip
from ..data.mouth import SAMPLES_PER_FRAME
from .sample import Sample
from .settings import FRAMES, PAST, Released

_PIECE = 12  # frames through the codec at once: the Wan VAE takes 1.5 GB for them at 512 pixels


@dataclass(frozen=True)
class Encoder:
    """The codec and the ear of a student.

    Attributes:
        hear: sound [samples of the clip and around it] -> features [81, A].
        mask: [H, W], and latent_mask: [h, w], 1 = keep.
        text: the prompt's embedding, float32 [text_len, text_dim].
    """

    codec: TAEHV | WanVAE
    hear: Callable[[Tensor], Tensor]
    mask: Tensor
    text: NDArray[np.float32]
    latent_mask: Tensor

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Encoder:
        """Those of a folder that `lipstream-train` wrote. Raises CheckpointError."""
        try:
            student = Checkpoint.load(folder)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{folder} is no checkpoint: {str(error).splitlines()[0]}", expected="a folder of lipstream-train"
            ) from error
        first, end = PAST * SAMPLES_PER_FRAME - LOOKBACK, (PAST + FRAMES) * SAMPLES_PER_FRAME + LOOKAHEAD

        def hear(sound: Tensor) -> Tensor:
            features: Tensor = student.speech(sound[None, first:end])
            return features[0]

        masks = student.masks
        return cls(student.taehv, hear, masks["pixel"], student.text.numpy(), masks["latent"])

    @classmethod
    def of_released(cls, files: Released, config: StudentConfig) -> Encoder:
        """Those of the released system, as its own data was made: a clip's sound is heard as a whole, by itself.

        On a GPU where there is one. Raises CheckpointError.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ear = load_wav2vec(files.wav2vec)
        first, end = PAST * SAMPLES_PER_FRAME, (PAST + FRAMES) * SAMPLES_PER_FRAME

        def hear(sound: Tensor) -> Tensor:
            return hidden_states(ear, sound[first:end], FRAMES)

        masks = load_masks(files.mask, config)
        text = load_text(files.text, config.text_len, config.text_dim).float().numpy()
        return cls(load_wan_vae(files.vae).to(device), hear, masks["pixel"], text, masks["latent"])

    @torch.inference_mode()
    def encode(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """`target`, `masked` and `reference`, float16 [C, latent frames, h, w]; `first`, of the identity; `audio`,
        float32 [81, features].

        Masked is the video that is driven: the clip itself; of drawn people the reference, which is the same moment
        with another mouth.
        """
        driving = sample.reference if sample.about.get("same_moment") else sample.target
        latents = {
            "target": self._latents(sample.target),
            "masked": self._latents(driving, self.mask),
            "reference": self._latents(sample.reference),
            "first": self._latents(sample.identity[None]),
        }
        audio = self.hear(torch.from_numpy(sample.sound))
        return {name: x.half().cpu().numpy() for name, x in latents.items()} | {"audio": audio.numpy()}

    def _latents(self, frames: NDArray[np.uint8], mask: Tensor | None = None) -> Tensor:
        return encode_clip(self.codec, frames, mask, piece=_PIECE)
