"""The tiny student's audio encoder, in place of upstream's wav2vec 2.0: convolutions over log-mel spectra.

It is trained to tell the visemes and the mouth; the layer before that gives the student's audio features. Every
convolution looks back only, so the last hop of a frame's window decides the look-ahead.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mel import LOOKAHEAD, LOOKBACK, LogMel

FEATURES = 64
MELS = 40
LAYERS = ((128, 5, 1, 1), (128, 4, 2, 1), (192, 3, 2, 1), (192, 3, 1, 1), (192, 3, 1, 1), (192, 3, 1, 2))
"""Channels, kernel, stride and dilation of each convolution: from hops of 10 ms to frames, 44 hops for each frame."""


class SpeechEncoder(nn.Module):
    """Samples [..., LOOKBACK + 640 n + LOOKAHEAD] at 16 kHz in [-1, 1] -> features [..., n, 64] in [-1, 1]."""

    architecture = "convolutions"
    lookback, lookahead = LOOKBACK, LOOKAHEAD
    features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(MELS)
        self.layers = nn.ModuleList()
        width = MELS + 1
        for channels, kernel, stride, dilation in LAYERS:
            self.layers.append(nn.Conv1d(width, channels, kernel, stride, dilation=dilation))
            width = channels
        self.out = nn.Linear(width, FEATURES)

    def forward(self, samples: Tensor) -> Tensor:
        return self.encode(self.mel(samples)).reshape(*samples.shape[:-1], -1, FEATURES)

    def encode(self, spectrum: Tensor) -> Tensor:
        """Spectra [B, MELS + 1, 40 + 4 n] -> features [B, n, 64]."""
        x = spectrum
        for layer in self.layers:
            y = F.gelu(layer(x), approximate="tanh")
            same = y.shape[1] == x.shape[1] and cast(nn.Conv1d, layer).stride == (1,)
            x = y + x[:, :, -y.shape[2] :] if same else y
        return torch.tanh(self.out(x.transpose(1, 2)))
