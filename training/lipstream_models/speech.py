"""The tiny student's audio encoder, in place of upstream's wav2vec 2.0: a small network on log-mel features.

It is trained to predict the mouth; the layer before the prediction gives the student's audio features.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from .mel import FEATURES, LOOKAHEAD, LOOKBACK, LogMel

WIDTHS = (256, 128, 64)


class SpeechEncoder(nn.Module):
    """Samples [..., LOOKBACK + 640 n + LOOKAHEAD] at 16 kHz in [-1, 1] -> features [..., n, 64] in [-1, 1]."""

    lookback, lookahead = LOOKBACK, LOOKAHEAD
    features = WIDTHS[-1]

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel()
        layers: list[nn.Module] = []
        for n_in, n_out in zip((FEATURES, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.GELU(approximate="tanh")]
        self.layers = nn.Sequential(*layers[:-1], nn.Tanh())

    def forward(self, samples: Tensor) -> Tensor:
        return cast(Tensor, self.layers(self.mel(samples)))
