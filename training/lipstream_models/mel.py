"""Log-mel features of speech per video frame, with its loudness relative to the speaker.

Hops are 10 ms, four per video frame. The features of a frame are: for each hop of the previous, current and next frame
(40 ms of look-ahead), the mel spectrum, the loudness of the vowel band relative to its running maximum, and that
maximum; for each of the seven frames before these, the mean mel spectrum. Windows have fixed lengths and nothing is
normalised over the clip, so a live stream gives the same features as a whole file.
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
MELS = 32
VOWELS = (300.0, 3400.0)
"""Hz; the band in which loudness is measured."""
LEVEL_HOPS = 29
"""Hops of the running maximum, 0.29 s."""
NEAR, FAR = 3, 7
"""Frames taken hop by hop (the last is the one after the frame itself), and frames before them taken as a mean."""
_BEFORE = 9  # frames before the first one that FAR and the running maximum cover
_MARGIN = (WINDOW - HOP) // 2  # windows are centred on their hop
_HOPS = SAMPLES_PER_FRAME // HOP
LOOKBACK = _BEFORE * SAMPLES_PER_FRAME + _MARGIN
LOOKAHEAD = SAMPLES_PER_FRAME + _MARGIN
PAST_FRAMES = -(-LOOKBACK // SAMPLES_PER_FRAME)
"""Whole video frames of audio that cover LOOKBACK; kept before each clip, so that its first frame has its context."""
SAMPLES_AFTER = -(-LOOKAHEAD // HOP) * HOP
"""Whole hops that cover LOOKAHEAD, in samples; kept after each clip."""
FEATURES = NEAR * _HOPS * (MELS + 2) + FAR * MELS


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
    """Samples [..., LOOKBACK + 640 n + LOOKAHEAD] in [-1, 1] -> features [..., n, FEATURES], near unit scale."""

    basis: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        bins = torch.arange(WINDOW // 2 + 1)
        phase = 2 * math.pi * torch.outer(bins, torch.arange(WINDOW)).double() / WINDOW
        window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
        basis = torch.cat([phase.cos(), phase.sin()]) * window * (2 / window.sum())
        hertz = bins * SAMPLE_RATE / WINDOW
        vowels = ((hertz >= VOWELS[0]) & (hertz < VOWELS[1])).double() / 8
        self.register_buffer("basis", basis.float()[:, None], persistent=False)
        self.register_buffer("filters", torch.cat([mel_filters(), vowels[None]]).float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        spectrum = F.conv1d(samples.reshape(-1, 1, samples.shape[-1]), self.basis, stride=HOP)
        real, imaginary = spectrum.chunk(2, dim=1)
        # One added to the scaled power, not 1e-8 to the power: ONNX Runtime treats so small an addend as zero.
        power = torch.log10(1e8 * (self.filters @ (real**2 + imaginary**2)) + 1) / 2 - 1.5
        mel, loudness = power[:, :MELS], power[:, MELS:]
        level = F.max_pool1d(F.pad(loudness, (LEVEL_HOPS - 1, 0), value=-1.5), LEVEL_HOPS, stride=1)
        hops = torch.cat([mel, 2 * (loudness - level), level], dim=1).transpose(1, 2)
        frames = torch.unflatten(hops, 1, (-1, _HOPS))  # [B, _BEFORE + n + 1, hops, MELS + 2]
        means = frames[..., :MELS].mean(2)
        count = frames.shape[1] - _BEFORE - 1
        near = [frames[:, _BEFORE - 1 + i :][:, :count].flatten(2) for i in range(NEAR)]
        far = [means[:, _BEFORE - 1 - FAR + i :][:, :count] for i in range(FAR)]
        features = torch.cat([*near, *far], dim=2)
        return features.reshape(*samples.shape[:-1], count, FEATURES)
