"""Audio features of the released system: wav2vec 2.0's hidden states, one column per video frame.

The network is that of `transformers`; what is done around it is Lip Forcing's: the waveform is normalised as a whole,
and the convolutions' output is stretched to the video's frames before the transformer, not after.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from lipstream_training.models.mel import SAMPLES_PER_FRAME
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model


class Wav2VecFeatures(nn.Module):
    """A whole waveform [N], 16 kHz -> features [frames, (L + 2) * width]: last hidden state, then all L + 1 of them.

    As a graph it is for one length.

    Args:
        model: wav2vec 2.0, in float32. samples: N. frames: of the video; the waveform is continued with zeros where it
            is shorter, and gives more features where it is longer.
    """

    input_names = ("waveform",)
    output_names = ("features",)

    def __init__(self, model: Wav2Vec2Model, samples: int, frames: int) -> None:
        super().__init__()
        self.model = model
        self.samples, self.frames = samples, max(math.ceil(samples / SAMPLES_PER_FRAME), frames)
        convolution: Any = model.encoder.pos_conv_embed.conv
        if parametrize.is_parametrized(convolution, "weight"):  # weight norm, which the exported graph need not compute
            parametrize.remove_parametrizations(convolution, "weight")

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(self.samples),)

    def forward(self, waveform: Tensor) -> Tensor:
        x = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        x = F.pad(x, (0, self.frames * SAMPLES_PER_FRAME - self.samples))
        hidden = self.model.feature_extractor(x[None])
        hidden = F.interpolate(hidden, size=self.frames, mode="linear", align_corners=True).transpose(1, 2)
        hidden, _ = self.model.feature_projection(hidden)
        # The encoder's own loop, since how it hands out all states differs between versions of transformers.
        encoder: Any = self.model.encoder
        states = [encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))]
        for layer in encoder.layers:
            output = layer(states[-1])
            states.append(output[0] if isinstance(output, tuple) else output)
        return torch.cat([states[-1], *states], dim=-1)[0]


def wav2vec(config: dict[str, Any], weights: dict[str, Tensor]) -> Wav2Vec2Model:
    """The network of `transformers` with the given sizes (its own names) and weights.

    Raises:
        ValueError: weights are missing or unknown; it lists them.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    model: Any = Wav2Vec2Model(Wav2Vec2Config(**{**config, "attn_implementation": "eager"}))
    missing, unknown = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name != "masked_spec_embed"]  # of training alone
    if missing or unknown:
        raise ValueError(f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}")
    found: Wav2Vec2Model = model.eval().requires_grad_(False)
    return found
