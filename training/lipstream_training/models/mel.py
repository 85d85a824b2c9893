"""Log-mel features per video frame: what the tiny student hears instead of wav2vec 2.0.

Ten-millisecond frames, so four to a video frame; a video frame's features are those of the frame before, its own and
the one after (40 ms of look-ahead). Windows are fixed and nothing is normalised over the clip, hence a live stream
gives the same features as a whole file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = 640
HOP = 160
WINDOW = 400
MELS = 32
NEIGHBOURS = 1
LOOKBACK = LOOKAHEAD = NEIGHBOURS * SAMPLES_PER_FRAME + (WINDOW - HOP) // 2
FEATURES = (2 * NEIGHBOURS + 1) * (SAMPLES_PER_FRAME // HOP) * MELS


def mel_filters(low: float = 60.0, high: float = 7600.0) -> Tensor:
    """Triangular filters [MELS, WINDOW // 2 + 1] on the HTK mel scale, each of unit sum."""

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1 + hertz / 700)

    edges = torch.linspace(mel(low), mel(high), MELS + 2, dtype=torch.float64)
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / WINDOW
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp_min(0)
    return filters / filters.sum(1, keepdim=True)


class LogMel(nn.Module):
    """Samples [LOOKBACK + 640 n + LOOKAHEAD] in [-1, 1] -> features [n, FEATURES] of n frames, near unit scale."""

    basis: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        phase = 2 * math.pi * torch.outer(torch.arange(WINDOW // 2 + 1), torch.arange(WINDOW)).double() / WINDOW
        window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
        basis = torch.cat([phase.cos(), phase.sin()]) * window * (2 / window.sum())
        self.register_buffer("basis", basis.float()[:, None], persistent=False)
        self.register_buffer("filters", mel_filters().float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        spectrum = F.conv1d(samples[None, None], self.basis, stride=HOP)[0]
        real, imaginary = spectrum.chunk(2)
        # One added to the scaled power, not 1e-8 to the power: ONNX Runtime takes so small an addend for none.
        mel = torch.log10(1e8 * (self.filters @ (real**2 + imaginary**2)) + 1) / 2 - 1.5
        frames = mel.T.reshape(-1, SAMPLES_PER_FRAME // HOP * MELS)
        count = frames.shape[0] - 2 * NEIGHBOURS
        return torch.cat([frames[i : i + count] for i in range(2 * NEIGHBOURS + 1)], dim=1)
