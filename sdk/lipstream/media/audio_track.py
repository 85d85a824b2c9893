"""The audio track of a file being written: timed by counting samples, exactly as long as the video."""

from __future__ import annotations

import logging
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import ArrayLike, NDArray

from ..errors import AudioFormatError
from .audio import LAYOUTS, to_float
from .resample import StreamResampler

log = logging.getLogger("lipstream")

AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Hz, ISO/IEC 14496-3 table 1.18."""

_AAC_BITS_PER_CHANNEL = 96_000
_PCM_BLOCK = 1024
_WORTH_A_WARNING = Fraction(1, 25)  # seconds cut off


class AudioTrack:
    """AAC or, lossless, float PCM in `container`. Samples are buffered until the video reaches their time.

    Args:
        container: whose encoding has not started.
        rate: Hz of the pushed samples; a rate that AAC lacks is resampled to the next higher one, or 96 kHz.
        channels: 1..8.
        lossless: float PCM.
    """

    def __init__(self, container: OutputContainer, rate: int, channels: int, lossless: bool) -> None:
        self._container, self._channels = container, channels
        self._rate = rate if lossless else min((r for r in AAC_RATES if r >= rate), default=AAC_RATES[-1])
        self._resampler = None if self._rate == rate else StreamResampler(rate, self._rate, mono=False)
        self._layout = LAYOUTS[channels - 1]
        self._stream = container.add_stream(
            "pcm_f32le" if lossless else "aac", rate=self._rate, layout=self._layout, time_base=Fraction(1, self._rate)
        )
        if not lossless:
            self._stream.bit_rate = _AAC_BITS_PER_CHANNEL * channels
        self._waiting = av.AudioFifo()
        self._encoded = 0

    def checked(self, samples: ArrayLike) -> NDArray[np.float32]:
        """Convert samples for `push`; AudioFormatError if they do not fit this track."""
        pcm = to_float(samples)
        if pcm.shape[1] != self._channels:
            raise AudioFormatError(f"{pcm.shape[1]} audio channels", expected=f"{self._channels}, as set at the start")
        return pcm

    def push(self, samples: NDArray[np.float32]) -> None:
        """Append samples, float32 [n, channels]."""
        self._queue(self._resampler.push(samples) if self._resampler else samples)

    def encode_until(self, seconds: Fraction) -> None:
        """Encode buffered samples up to `seconds`, the video's current length, in whole codec frames."""
        size = self._stream.codec_context.frame_size or _PCM_BLOCK
        while self._waiting.samples >= size and self._encoded + size <= seconds * self._rate:
            self._encode(size)

    def finish(self, seconds: Fraction) -> None:
        """Encode the rest, padded with silence or cut to end at `seconds`."""
        if self._resampler:
            self._queue(self._resampler.flush())
        total = round(seconds * self._rate)
        missing = total - self._encoded - self._waiting.samples
        if missing > 0:
            self._queue(np.zeros((missing, self._channels), np.float32))
        elif -missing >= _WORTH_A_WARNING * self._rate:
            log.warning("audio is %.3f s longer than the video; the rest is cut", -missing / self._rate)
        self.encode_until(seconds)
        if self._encoded < total:
            self._encode(total - self._encoded)
        self._container.mux(self._stream.encode(None))

    def _queue(self, samples: NDArray[np.float32]) -> None:
        if len(samples):
            packed = np.ascontiguousarray(samples).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=self._layout)
            frame.sample_rate = self._rate
            self._waiting.write(frame)

    def _encode(self, count: int) -> None:
        frame = self._waiting.read(count)
        assert frame is not None
        frame.pts, frame.time_base = self._encoded, Fraction(1, self._rate)
        self._encoded += count
        self._container.mux(self._stream.encode(frame))
