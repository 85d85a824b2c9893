"""Sample rate conversion of a live stream, bit-identical for every split of the stream into pushes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import AudioFormatError
from .audio import LAYOUTS, check_rate, to_float

_BLOCKS_PER_SECOND = 50
_TAIL_SECONDS = 0.1  # of silence, more than the filter's half length at any rate allowed
_CANCELLED = 0.1  # energy of the mean over that of a mean of unrelated channels
_STRONGER = 2.0  # by how much more energy another channel must have had so far to be taken instead


class StreamResampler:
    """Converts audio pushed in pieces of any size to another rate, mixed to mono or channel by channel.

    libswresample rounds differently with the size of its input, so the input is regrouped into blocks of 20 ms first:
    equal streams give bit-identical output for every split. The filter's delay is compensated (output sample j is the
    signal at j / target seconds) and the rate ratio is exact, without drift. n input samples give
    floor(n * target / rate + 1/2) output samples in total, the last ones with `flush`.

    Args:
        rate: of the input, Hz, 4000..384000.
        target: of the output, Hz, likewise.
        mono: mix the channels to their mean and return [m]; else keep them and return [m, channels]. Where channels
            cancel each other in the mean, as in stereo of opposite phase, the strongest one is taken alone.

    Raises:
        AudioFormatError: a rate out of range; from `push`, samples that `to_float` rejects or a changed channel count.
    """

    _swr: av.AudioResampler
    _pending: NDArray[np.float32] | None
    _channels: int | None
    _received: int
    _returned: int

    def __init__(self, rate: int, target: int = 16_000, *, mono: bool = True) -> None:
        self.rate, self.target, self.mono = check_rate(rate), check_rate(target), mono
        self._block = max(1, self.rate // _BLOCKS_PER_SECOND)
        self._reset()

    def push(self, pcm: ArrayLike) -> NDArray[np.float32]:
        """Append input and return the output that is final: float32 [m] (mono) or [m, channels]; may be empty.

        Args:
            pcm: int16 or float32 [n] or [n, channels], n >= 0, as `to_float` takes it.
        """
        samples = to_float(pcm)
        if self._channels not in (None, samples.shape[1]):
            raise AudioFormatError(f"{samples.shape[1]} audio channels", expected=f"{self._channels}, as pushed before")
        self._channels = samples.shape[1]
        self._received += len(samples)
        return self._convert(samples)

    def flush(self) -> NDArray[np.float32]:
        """Return the rest of the output, as if silence followed, and reset for another stream."""
        total = (2 * self._received * self.target + self.rate) // (2 * self.rate)
        missing = total - self._returned
        # Complete the current block, so that the silence is processed.
        silence = np.zeros((int(self.rate * _TAIL_SECONDS) + self._block, self._channels or 1), np.float32)
        tail = self._convert(silence)[:missing] if missing else self._shaped([])
        self._reset()
        return tail

    def _reset(self) -> None:
        self._swr = av.AudioResampler(format="flt", rate=self.target)
        self._pending = None
        self._channels = None
        self._received = self._returned = 0
        self._energy, self._strongest = np.zeros(1), 0

    def _mixed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n, channels] -> [n, 1]."""
        mean = block.mean(axis=1, keepdims=True)
        energy = np.square(block, dtype=np.float64).sum(axis=0)
        self._energy = self._energy + energy
        best = int(self._energy.argmax())
        if self._energy[best] > _STRONGER * self._energy[self._strongest]:
            self._strongest = best
        if np.square(mean, dtype=np.float64).sum() >= _CANCELLED * energy.sum() / len(energy) ** 2:
            return np.asarray(mean, np.float32)
        return block[:, self._strongest : self._strongest + 1]

    def _convert(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        width = samples.shape[1]
        if self._pending is not None:
            samples = np.concatenate([self._pending, samples])
        whole = len(samples) // self._block * self._block
        pieces = []
        for start in range(0, whole, self._block):
            block = samples[start : start + self._block]
            block = self._mixed(block) if self.mono and width > 1 else block
            packed = np.ascontiguousarray(block).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[block.shape[1] - 1])
            frame.sample_rate = self.rate
            for out in self._swr.resample(frame):
                pieces.append(np.asarray(out.to_ndarray(), np.float32).reshape(-1, block.shape[1]))
        self._pending = samples[whole:].copy()
        output = self._shaped(pieces)
        self._returned += len(output)
        return output

    def _shaped(self, pieces: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        width = 1 if self.mono else self._channels or 1
        output = np.concatenate([np.empty((0, width), np.float32), *pieces])
        return output[:, 0] if self.mono else output


def resampled_blocks(blocks: Iterable[NDArray[np.float32]], rate: int, target: int) -> Iterator[NDArray[np.float32]]:
    """Yield `blocks`, float32 [n, channels] at `rate` Hz, as mono float32 [m] at `target` Hz, to the last sample."""
    resampler = StreamResampler(rate, target)
    for block in blocks:
        yield resampler.push(block)
    yield resampler.flush()
