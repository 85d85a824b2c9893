"""Sound as `librosa.load` gives it, compared with its steps on the whole clip."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from lipstream.media.librosa import librosa_blocks
from numpy.typing import NDArray


def loaded(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """to_mono, resample with res_type="soxr_hq", and fix_length."""
    mono = np.mean(samples.T, axis=0)
    found = soxr.resample(mono, rate, 16_000, quality="soxr_hq")
    wanted = int(np.ceil(len(mono) * 16_000 / rate))
    return np.pad(found, (0, max(0, wanted - len(found))))[:wanted]


@pytest.mark.parametrize("rate", [48_000, 44_100, 22_050, 8_000, 16_001])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_to_the_bit_for_any_blocks(rate: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    for length in (rate + 1, 3 * rate + 17, 5):
        samples = rng.standard_normal((length, channels), np.float32) * np.float32(0.3)
        cuts = np.sort(rng.integers(0, length, 7))
        found = np.concatenate(list(librosa_blocks(np.split(samples, cuts), rate, 16_000)))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, loaded(samples, rate))


def test_at_the_wanted_rate_it_is_the_mean() -> None:
    """Also of channels that cancel each other."""
    samples = np.array([[0.5, -0.5], [0.25, 0.5]], np.float32)
    np.testing.assert_array_equal(np.concatenate(list(librosa_blocks([samples], 16_000, 16_000))), [0, 0.375])
