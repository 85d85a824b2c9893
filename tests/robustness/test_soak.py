"""Hours of a stream: flat memory, exact counts, no drift. A numpy model in a real session.

python -m pytest tests/robustness -m slow
"""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from lipstream.errors import BackpressureError
from numpy_stream import NumberedReference, NumpyStream, OpenSession, noise


class Forgetful(NumpyStream):
    """Does not record its calls."""

    def encode_audio(self, samples: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        features = super().encode_audio(samples)
        for record in (self.calls, self.windows, self.given):
            record.clear()
        return features


class FacesComeAndGo(NumberedReference):
    def frames(self, first: int, count: int) -> list:  # type: ignore[type-arg]
        frames = super().frames(first, count)
        return [
            type(frame)(frame.picture, frame.crop, None if (first + i) % 997 < 40 else frame.matrix)
            for i, frame in enumerate(frames)
        ]


def soak(hours: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    opened = OpenSession(stream=Forgetful(), reference=FacesComeAndGo(), max_pending=5)
    session, taken, pushed, sizes = opened.session, 0, 0.0, []
    sound = {rate: noise(2 * rate) for rate in (8_000, 16_000, 22_050, 44_100, 48_000)}
    rate, fresh = 16_000, True
    while pushed < 3600 * hours:
        if fresh:
            rate = int(rng.choice([*sound]))
        piece = sound[rate][: int(rng.integers(1, 2 * rate))]
        try:
            session.push_audio(piece, rate)
            pushed += len(piece) / rate
            fresh = False
        except BackpressureError:
            pass
        action = rng.random()
        if action < 0.02:
            session.flush()
            fresh = True
        elif action < 0.03:
            assert session.interrupt() == taken / 25
            fresh = True
        for frame in session:
            assert frame.index == taken
            assert frame.pts == taken / 25
            taken += 1
            if action > 0.97 and rng.random() < 0.1:
                break
        if len(sizes) < pushed // 60:
            gc.collect()
            sizes.append(sys.getallocatedblocks())
    half = len(sizes) // 2
    # The pending audio at the time of the measurement varies by a few seconds.
    assert max(sizes[half:]) < max(sizes[:half]) + 2_000  # blocks of memory
    assert taken > 0.9 * pushed * 25 - 6 * 25 * 60 * hours


def test_two_minutes() -> None:
    soak(2 / 60, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_eight_hours(seed: int) -> None:
    soak(8, seed)
