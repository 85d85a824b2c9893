"""The audio_encoder graph: samples of one chunk, with their context, to features per video frame."""

from __future__ import annotations

import torch
from lipstream_models.mel import SAMPLES_PER_FRAME
from lipstream_models.parts import AudioEncoderModel
from torch import Tensor, nn


class AudioEncoder(nn.Module):
    """samples [lookback + 640 n + lookahead] in [-1, 1] -> features [n, A]."""

    input_names = ("samples",)
    output_names = ("features",)

    def __init__(self, speech: AudioEncoderModel, frames: int) -> None:
        super().__init__()
        self.speech, self.frames = speech, frames

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(self.speech.lookback + self.frames * SAMPLES_PER_FRAME + self.speech.lookahead),)

    def forward(self, samples: Tensor) -> Tensor:
        features: Tensor = self.speech(samples)
        return features
