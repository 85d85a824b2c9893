"""The graphs audio_encoder, samples of one chunk and their context to features per video frame, and clip_encoder."""

from __future__ import annotations

import torch
from lipstream.bundle.manifest import CLIP_FRAMES
from lipstream_models.mel import SAMPLES_PER_FRAME
from lipstream_models.parts import AudioEncoderModel
from lipstream_models.released.wav2vec import LiveWav2Vec, hidden_states_of_part
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


class ClipEncoder(nn.Module):
    """samples [640 f] in [-1, 1] -> features [f, A] of the clip that its first `count` [1] samples are."""

    input_names = ("samples", "count")
    output_names = ("features",)

    def __init__(self, speech: LiveWav2Vec) -> None:
        super().__init__()
        self.model = speech.model

    def example(self) -> tuple[Tensor, ...]:
        return torch.zeros(SAMPLES_PER_FRAME * 20), torch.tensor([SAMPLES_PER_FRAME * 19 + 1])

    def dynamic(self) -> tuple[dict[int, object], ...]:
        """The number of frames is variable."""
        return {0: SAMPLES_PER_FRAME * torch.export.Dim("clip_frames", min=2, max=CLIP_FRAMES)}, {}

    def forward(self, *inputs: Tensor) -> Tensor:
        samples, count = inputs
        inside = (torch.arange(samples.shape[-1]) < count).to(samples.dtype)
        frames = torch.ones(samples.shape[-1] // SAMPLES_PER_FRAME)
        return hidden_states_of_part(self.model, samples, inside, frames)
