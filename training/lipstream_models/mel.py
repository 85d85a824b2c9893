"""Log-mel spectra of speech in hops of 10 ms, four per video frame, and the sound that a frame's features depend on.

Windows have fixed lengths and nothing is normalised over the clip, so a live stream gives the same spectra as a whole
file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 16000
"""Hz."""
SAMPLES_PER_FRAME = 640
"""Audio samples per video frame at 25 frames a second."""
HOP = 160
WINDOW = 400
HOPS_PER_FRAME = SAMPLES_PER_FRAME // HOP
VOWELS = (300.0, 3400.0)
"""Hz; the band in which loudness is measured."""
_MARGIN = (WINDOW - HOP) // 2  # windows are centred on their hop
FRAMES_BEFORE = 9
"""Whole frames before a frame that its features depend on; and the one after it."""
LOOKBACK = FRAMES_BEFORE * SAMPLES_PER_FRAME + _MARGIN
LOOKAHEAD = SAMPLES_PER_FRAME + _MARGIN
PAST_FRAMES = -(-LOOKBACK // SAMPLES_PER_FRAME)
"""Whole video frames of audio that cover LOOKBACK; kept before each clip, so that its first frame has its context."""
SAMPLES_AFTER = -(-LOOKAHEAD // HOP) * HOP
"""Whole hops that cover LOOKAHEAD, in samples; kept after each clip."""


def mel_filters(count: int, low: float = 60.0, high: float = 7600.0) -> Tensor:
    """Triangular filters [count, WINDOW // 2 + 1] on the HTK mel scale, each of unit sum."""

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1 + hertz / 700)

    edges = torch.linspace(mel(low), mel(high), count + 2, dtype=torch.float64)
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / WINDOW
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp_min(0)
    return filters / filters.sum(1, keepdim=True)


class LogMel(nn.Module):
    """Samples [..., WINDOW + 160 (h - 1)] in [-1, 1] -> [B, mels + 1, h], near unit scale.

    These are `mels` bands and the loudness of the vowel band; B is the product of the leading sizes.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, mels: int) -> None:
        super().__init__()
        bins = torch.arange(WINDOW // 2 + 1)
        phase = 2 * math.pi * torch.outer(bins, torch.arange(WINDOW)).double() / WINDOW
        window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
        basis = torch.cat([phase.cos(), phase.sin()]) * window * (2 / window.sum())
        hertz = bins * SAMPLE_RATE / WINDOW
        vowels = ((hertz >= VOWELS[0]) & (hertz < VOWELS[1])).double() / 8
        self.register_buffer("basis", basis.float()[:, None], persistent=False)
        self.register_buffer("filters", torch.cat([mel_filters(mels), vowels[None]]).float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        spectrum = F.conv1d(samples.reshape(-1, 1, samples.shape[-1]), self.basis, stride=HOP)
        real, imaginary = spectrum.chunk(2, dim=1)
        # One added to the scaled power, not 1e-8 to the power: ONNX Runtime treats so small an addend as zero.
        return torch.log10(1e8 * (self.filters @ (real**2 + imaginary**2)) + 1) / 2 - 1.5
