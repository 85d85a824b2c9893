"""The denoising loop against the schedule the models are trained with, and against the released order of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lipstream.backends.sampler import add_noise, assemble_condition, generate_chunk, predict_x0
from lipstream_models import schedule
from numpy.typing import NDArray

Array = NDArray[np.float32]


def normal(seed: int, shape: tuple[int, ...] = (4, 3, 2, 2)) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("t", [0.999, 0.769, 0.5, 0.0, 1.0])
def test_schedule(t: float) -> None:
    a, b = normal(0), normal(1)
    noisy = schedule.add_noise(torch.from_numpy(a), torch.from_numpy(b), t)
    np.testing.assert_array_equal(add_noise(a, b, t), noisy.numpy())
    clean = schedule.predict_x0(torch.from_numpy(a), torch.from_numpy(b), t)
    np.testing.assert_array_equal(predict_x0(a, b, t), clean.numpy())
    assert add_noise(a, b, t).dtype == predict_x0(a, b, t).dtype == np.float32


class Linear:
    """A denoiser with velocity = x * (step + 2) + mean(condition) + mean(audio); keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, Array]] = []

    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        self.given.append((step, latent.copy()))
        return np.asarray((step + 2) * latent + condition.mean() + audio.mean(), np.float32)


@pytest.mark.parametrize("times", [(0.999, 0.769, 0.0), (0.9, 0.0), (0.99, 0.8, 0.5, 0.2, 0.0)])
def test_passes(times: tuple[float, ...]) -> None:
    noises = [normal(10 + i) for i in range(len(times) - 1)]
    condition, audio = normal(2, (13, 3, 2, 2)), normal(3, (12, 5))
    stream: Any = Linear()
    velocities: list[Array] = []
    x0 = generate_chunk(
        stream, times, noises, condition, audio, on_velocity=lambda step, velocity: velocities.append(velocity)
    )
    constant = float(condition.mean()) + float(audio.mean())
    x = clean = noises[0].astype(np.float64)
    for step, t in enumerate(times[:-1]):
        if step:
            x = (1 - t) * clean + t * noises[step]
        assert stream.given[step][0] == step
        np.testing.assert_allclose(stream.given[step][1], x, atol=1e-4)
        clean = x - t * ((step + 2) * x + constant)
    np.testing.assert_allclose(x0, clean, atol=1e-4)
    assert len(stream.given) == len(velocities) == len(times) - 1


def test_condition_has_the_released_order_of_channels() -> None:
    reference, masked, sequence = normal(0, (4, 1, 2, 3)), normal(1, (4, 3, 2, 3)), normal(2, (4, 3, 2, 3))
    keep = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    condition = assemble_condition(reference, keep, masked, sequence)
    assert condition.shape == (13, 3, 2, 3)
    assert condition.dtype == np.float32
    for frame in range(3):
        np.testing.assert_array_equal(condition[:4, frame], reference[:, 0])
        np.testing.assert_array_equal(condition[4, frame], [[0, 1, 0], [1, 1, 0]])  # 1 where it is to generate
        np.testing.assert_array_equal(condition[5:9, frame], masked[:, frame])
        np.testing.assert_array_equal(condition[9:, frame], sequence[:, frame])
