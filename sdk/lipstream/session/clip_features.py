"""Audio features of a file, computed on all of its sound and not on a window around each chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..backends.base import Array
from ..bundle.manifest import CLIP_FRAMES

_MARGIN = 250
"""Frames on either side of a window in sound of more than `CLIP_FRAMES` whose features are not used, 10 s."""
_KEPT = 50  # frames before the current window that may still be asked for: a chunk may be started again


class ClipFeatures:
    """Features of consecutive frames of a clip, on demand, in memory that does not depend on its length.

    Up to `CLIP_FRAMES` frames they are those of the whole clip. Longer sound is computed in windows of so many frames,
    each as if it were the clip, that overlap by 20 s.

    Args:
        encode: see `Backend.encode_clip`.
        sound: pieces of the clip, float32 [n] at the model's rate. step: its samples per video frame.
        longest, margin: frames of a window, and of it on either side those whose features are not used.
        least: frames of the clip, of which the last ones may have no sound.
    """

    def __init__(
        self,
        encode: Callable[[Array, int], Array],
        sound: Iterable[Array],
        step: int,
        *,
        longest: int = CLIP_FRAMES,
        margin: int = _MARGIN,
        least: int = 0,
    ) -> None:
        self._encode, self._sound, self._step = encode, iter(sound), step
        self._longest, self._margin, self._least = longest, margin, least
        self._samples = np.zeros(0, np.float32)
        self._first = 0  # frame with which they begin
        self._ended = False
        self._features: Array | None = None  # of the frames up to `_done`
        self._done = 0

    def __call__(self, first: int, frames: int) -> Array:
        """Features [frames, A] of the frames from `first` on; before the clip those of its first frame, after it of its
        last.
        """
        while not (self._ended and self._features is not None) and first + frames > self._done:
            self._advance()
        assert self._features is not None
        begun = self._done - len(self._features)
        places = np.clip(np.arange(first, first + frames), 0, self._done - 1) - begun
        return self._features[places]

    def _advance(self) -> None:
        """Compute the next window."""
        wanted = max(0, self._done - self._margin) + self._longest
        pieces, have = [self._samples], self._first * self._step + len(self._samples)
        while have <= wanted * self._step:  # one sample more, to know whether this is the last window
            piece = next(self._sound, None)
            if piece is None:
                self._ended = True
                break
            pieces.append(piece)
            have += len(piece)
        self._samples = np.concatenate(pieces)
        end = max(-(-have // self._step), self._least) if self._ended else wanted
        start = max(0, end - self._longest)
        part = self._samples[(start - self._first) * self._step : (end - self._first) * self._step]
        found = self._encode(part, end - start)[self._done - start : None if self._ended else -self._margin]
        kept = found[:0] if self._features is None else self._features[-_KEPT:]
        self._features = np.concatenate([kept, found])
        self._done += len(found)
        start = max(0, min(self._done - self._margin, end - self._longest))
        self._samples = self._samples[max(0, start - self._first) * self._step :]
        self._first = max(self._first, start)
