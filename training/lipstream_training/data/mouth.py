"""The drawing rule: computes the shape of the mouth from the sound alone, 25 times a second.

It is a phonetic heuristic, not a simulation. The jaw opens with the loudness of the voice in the vowel band and with
the first formant ("ah" against "ee", "oo"); lips spread when the second formant is high ("ee") and round when it
is low ("oo"); an energy dip in the vowel band, as of p, b, m, closes them; a hissing sound shows the teeth.

Level: loudness is measured against a *running level*, the loudest 10 ms of the last 0.3 s, so the shape does not
depend on the gain; only sound below about -60 dBFS counts as silence. Time: frame f covers the samples
[640 f, 640 (f + 1)) and depends on those from `LOOKBACK` before its start to `LOOKAHEAD` (40 ms) after its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lipstream_models.mel import SAMPLES_PER_FRAME
from numpy.typing import NDArray

LOOKAHEAD = 640
"""Samples after the end of a frame that its mouth may depend on (anticipation)."""
LOOKBACK = 5280
"""Samples before the start of a frame that its mouth may depend on (coarticulation and running level)."""

_HOP = 160  # 10 ms
_WINDOW = 400  # 25 ms
_LEVEL_HOPS = 30  # 0.3 s
_SILENCE_DB = -60.0
# The hops that a frame averages, counted from the one that starts with it: windows within 40 ms on both sides of it.
_FIRST_HOP, _LAST_HOP = -4, 5


@dataclass(frozen=True)
class MouthTrack:
    """Mouth shape per video frame; all arrays float32 [frames].

    Attributes:
        opening: gap between the lips, 0 (closed) .. 1 (wide open).
        width: -1 (rounded, "oo") .. 1 (spread, "ee"); 0 at rest.
        teeth: retraction of the lips from the upper teeth, 0..1.
        tongue: height of the tongue, 0..1.
    """

    opening: NDArray[np.float32]
    width: NDArray[np.float32]
    teeth: NDArray[np.float32]
    tongue: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.opening)

    def __getitem__(self, frames: slice) -> MouthTrack:
        return MouthTrack(self.opening[frames], self.width[frames], self.teeth[frames], self.tongue[frames])

    def stacked(self) -> NDArray[np.float32]:
        """Opening, width, teeth and tongue side by side, float32 [frames, 4]."""
        return np.stack([self.opening, self.width, self.teeth, self.tongue], axis=1)


def closed_mouth(frames: int) -> MouthTrack:
    """A mouth at rest for `frames` frames."""
    still = np.zeros(frames, np.float32)
    return MouthTrack(still, still, still, still)


def mouth_track(clean: NDArray[np.float32], frames: int) -> MouthTrack:
    """The mouth that says `clean`.

    Args:
        clean: float32 [n], 16 kHz, without noise; sample 0 begins frame 0. Missing samples count as silence.
        frames: number of video frames, 40 ms each.
    """
    audio = np.zeros(LOOKBACK + frames * SAMPLES_PER_FRAME + LOOKAHEAD)  # LOOKBACK is a whole number of hops
    here = clean[: len(audio) - LOOKBACK]
    audio[LOOKBACK : LOOKBACK + len(here)] = here
    bands = _band_power(audio)
    first = np.arange(frames) * (SAMPLES_PER_FRAME // _HOP) + LOOKBACK // _HOP

    vowel, hissing = (10 * np.log10(bands[name] + 1e-10) for name in ("vowel", "hiss"))
    level = np.array([vowel[max(0, h - _LEVEL_HOPS + 1) : h + 1].max() for h in range(len(vowel))])
    floor = 10 ** (level / 10 - 4)  # 40 dB below the level counts as silence
    loudness = np.clip(1 + (vowel - level) / 22.0, 0, 1)  # 22 dB below the running level is closed
    loudness *= _ramp(level, _SILENCE_DB, _SILENCE_DB + 6)
    openness = _ramp(_ratio_db(bands["first_open"], bands["first_close"], floor), -13.0, 7.0)
    hiss = _ramp(_ratio_db(bands["hiss"], bands["vowel"], floor), -4.0, 12.0)
    hiss *= _ramp(hissing, _SILENCE_DB, _SILENCE_DB + 6)

    side = np.tanh((_ratio_db(bands["second_front"], bands["second_back"], floor) + 8.0) / 9.0)
    side = np.where(side < 0, side * (1 - 0.8 * openness), side)  # an open vowel is not round
    side = side * loudness * (1 - hiss) + 0.35 * hiss
    jaw = loudness**1.3 * (0.18 + 0.9 * openness) * (1 - 0.6 * hiss) * (1 - 0.35 * np.clip(-side, 0, 1))
    opening = np.clip(_per_frame(jaw, first) * 1.25 - 0.05, 0, 1)
    width = np.clip(_per_frame(side, first) * 1.3, -1, 1)
    teeth = np.clip(_per_frame(np.maximum(0.8 * hiss, 0.6 * np.clip(side, 0, 1)), first), 0, 1)
    tongue = np.clip(_per_frame(loudness * (0.25 + 0.6 * np.clip(side, 0, 1)), first), 0, 1)
    return MouthTrack(*(track.astype(np.float32) for track in (opening, width, teeth, tongue)))


def _band_power(audio: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Mean power of each band in 25 ms windows every 10 ms; 0 dB is a full-scale sine."""
    window = np.hanning(_WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(audio, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * window, 512)) ** 2 * (4 / window.sum() ** 2)
    hertz = np.fft.rfftfreq(512, 1 / 16_000)
    edges = {
        "vowel": (300, 3400),
        "first_close": (180, 480),
        "first_open": (560, 1150),
        "second_back": (560, 1250),
        "second_front": (1650, 3100),
        "hiss": (4000, 7600),
    }
    return {name: power[:, (hertz >= low) & (hertz < high)].sum(axis=1) for name, (low, high) in edges.items()}


def _ratio_db(
    above: NDArray[np.float64], below: NDArray[np.float64], floor: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.asarray(10 * np.log10((above + floor) / (below + floor)))


def _ramp(value: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return np.asarray(np.clip((value - low) / (high - low), 0, 1))


def _per_frame(track: NDArray[np.float64], first: NDArray[np.intp]) -> NDArray[np.float64]:
    """Weighted mean of the 10 ms values around each frame, for coarticulation; the weight is centred slightly ahead."""
    offsets = np.arange(_FIRST_HOP, _LAST_HOP + 1)
    weights = np.exp(-0.5 * ((offsets - 1.2) / 1.9) ** 2)
    return np.asarray(track[first[:, None] + offsets] @ (weights / weights.sum()))
