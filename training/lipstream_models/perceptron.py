"""The audio encoder of students that were trained to follow the drawing rule: a perceptron on mel spectra.

The features of a frame are: for each hop of the previous, current and next frame, the mel spectrum, the loudness of the
vowel band relative to its running maximum, and that maximum; for each of the seven frames before these, the mean mel
spectrum.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mel import HOP, HOPS_PER_FRAME, SAMPLES_PER_FRAME, WINDOW, LogMel

MELS = 32
LEVEL_HOPS = 29
"""Hops of the running maximum, 0.29 s."""
NEAR, FAR = 3, 7
"""Frames taken hop by hop (the last is the one after the frame itself), and frames before them taken as a mean."""
BEFORE = 9
"""Frames before the first one that FAR and the running maximum cover."""
LOOKBACK = BEFORE * SAMPLES_PER_FRAME + (WINDOW - HOP) // 2
LOOKAHEAD = SAMPLES_PER_FRAME + (WINDOW - HOP) // 2
INPUTS = NEAR * HOPS_PER_FRAME * (MELS + 2) + FAR * MELS
WIDTHS = (256, 128, 64)


class SpeechPerceptron(nn.Module):
    """Samples [..., LOOKBACK + 640 n + LOOKAHEAD] at 16 kHz in [-1, 1] -> features [..., n, 64] in [-1, 1]."""

    architecture = "perceptron"
    lookback, lookahead = LOOKBACK, LOOKAHEAD
    features = WIDTHS[-1]

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(MELS)
        layers: list[nn.Module] = []
        for n_in, n_out in zip((INPUTS, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.GELU(approximate="tanh")]
        self.layers = nn.Sequential(*layers[:-1], nn.Tanh())

    def forward(self, samples: Tensor) -> Tensor:
        features = cast(Tensor, self.layers(self.inputs(samples)))
        return features.reshape(*samples.shape[:-1], -1, self.features)

    def inputs(self, samples: Tensor) -> Tensor:
        """The inputs of the first layer, [B, n, INPUTS]."""
        power = self.mel(samples)
        mel, loudness = power[:, :MELS], power[:, MELS:]
        level = F.max_pool1d(F.pad(loudness, (LEVEL_HOPS - 1, 0), value=-1.5), LEVEL_HOPS, stride=1)
        hops = torch.cat([mel, 2 * (loudness - level), level], dim=1).transpose(1, 2)
        frames = torch.unflatten(hops, 1, (-1, HOPS_PER_FRAME))  # [B, BEFORE + n + 1, hops, MELS + 2]
        means = frames[..., :MELS].mean(2)
        count = frames.shape[1] - BEFORE - 1
        near = [frames[:, BEFORE - 1 + i :][:, :count].flatten(2) for i in range(NEAR)]
        far = [means[:, BEFORE - 1 - FAR + i :][:, :count] for i in range(FAR)]
        return torch.cat([*near, *far], dim=2)
