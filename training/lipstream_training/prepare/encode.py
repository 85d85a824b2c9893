"""Latents and features of clips, computed in advance or when a clip is read, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lipstream_models import TAEHV, StudentConfig, WanVAE
from lipstream_models.mel import PAST_FRAMES, SAMPLES_PER_FRAME
from lipstream_models.parts import StudentParts
from lipstream_models.released import load_wan_vae
from lipstream_models.released.masks import load_masks
from lipstream_models.released.text import load_text
from lipstream_models.released.wav2vec import hidden_states, load_wav2vec
from numpy.typing import NDArray
from torch import Tensor

from ..codec import encode_clip
from .sample import Sample
from .settings import FRAMES, Released

_PIECE = 12  # frames per call of the codec: the Wan VAE takes 1.5 GB for them at 512 pixels


@dataclass(frozen=True)
class Encoder:
    """The codec and the audio encoder of a student.

    Attributes:
        features: audio [samples of the clip and around it] -> features [81, A].
        mask: [H, W], and latent_mask: [h, w], 1 = keep.
        text: the prompt's embedding, float32 [text_len, text_dim].
    """

    codec: TAEHV | WanVAE
    features: Callable[[Tensor], Tensor]
    mask: Tensor
    text: NDArray[np.float32]
    latent_mask: Tensor

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Encoder:
        """The encoders of a folder that `lipstream-train` wrote.

        Raises:
            CheckpointError: as `StudentParts.from_checkpoint`.
        """
        parts = StudentParts.from_checkpoint(folder)
        codec, speech, text = parts.taehv, parts.speech, parts.text
        assert codec, "every checkpoint has a codec"
        assert speech, "every checkpoint has an audio encoder"
        assert text is not None, "every checkpoint has a prompt"
        first = PAST_FRAMES * SAMPLES_PER_FRAME - speech.lookback
        end = (PAST_FRAMES + FRAMES) * SAMPLES_PER_FRAME + speech.lookahead

        def features(audio: Tensor) -> Tensor:
            found: Tensor = speech(audio[None, first:end])
            return found[0]

        return cls(codec, features, parts.masks["pixel"], text.numpy(), parts.masks["latent"])

    @classmethod
    def of_released(cls, files: Released, config: StudentConfig) -> Encoder:
        """The encoders of published files. As upstream, the features of a clip are computed from its audio alone.

        The codec runs on a GPU if there is one.

        Raises:
            CheckpointError: a file is missing or of another kind.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        wav2vec = load_wav2vec(files.wav2vec)
        first, end = PAST_FRAMES * SAMPLES_PER_FRAME, (PAST_FRAMES + FRAMES) * SAMPLES_PER_FRAME

        def features(audio: Tensor) -> Tensor:
            return hidden_states(wav2vec, audio[first:end], FRAMES)

        masks = load_masks(files.mask, config)
        text = load_text(files.text, config.text_len, config.text_dim).float().numpy()
        return cls(load_wan_vae(files.vae).to(device), features, masks["pixel"], text, masks["latent"])

    @torch.inference_mode()
    def encode(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """`target`, `masked` and `reference`, float16 [C, latent frames, h, w]; `first`, of the identity; `audio`,
        float32 [81, features].

        `masked` is of the driving video: the clip itself, or for drawn people the reference, which shows the same
        moment with another mouth.
        """
        driving = sample.reference if sample.about.get("same_moment") else sample.target
        latents = {
            "target": self._latents(sample.target),
            "masked": self._latents(driving, self.mask),
            "reference": self._latents(sample.reference),
            "first": self._latents(sample.identity[None]),
        }
        audio = self.features(torch.from_numpy(sample.sound))
        return {name: x.half().cpu().numpy() for name, x in latents.items()} | {"audio": audio.numpy()}

    def _latents(self, frames: NDArray[np.uint8], mask: Tensor | None = None) -> Tensor:
        return encode_clip(self.codec, frames, mask, piece=_PIECE)
