"""Rotary embedding and rectified flow: their defining identities, in complex numbers and in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lipstream_models.rope import axis_pairs, rotate, spatial_angles, temporal_angles, token_angles
from lipstream_models.schedule import add_noise, predict_x0, shift_time

times = st.floats(0, 1)
indices = st.integers(0, 1023)


def turn(x: torch.Tensor, frame: int) -> torch.Tensor:
    angles = temporal_angles(torch.tensor([frame]), 2 * 22 + 2 * 42)[0]
    return rotate(x, angles.cos(), angles.sin())


def test_released_head_has_22_21_21_pairs() -> None:
    assert axis_pairs(128) == (22, 21, 21)


@pytest.mark.parametrize("head_dim", [2, 4, 8, 12, 14, 64, 128])
def test_pairs_fill_the_head(head_dim: int) -> None:
    pairs = axis_pairs(head_dim)
    assert sum(pairs) == head_dim // 2
    assert min(pairs) >= 0


@given(indices, indices, st.integers(0, 500))
def test_attention_depends_only_on_the_distance(m: int, n: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(m)
    q, k = torch.randn(2, 44, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(turn(q, m) @ turn(k, n), turn(q, m + shift) @ turn(k, n + shift), rtol=1e-9, atol=1e-9)


@given(indices)
def test_rotation_keeps_the_norm(frame: int) -> None:
    x = torch.randn(44, dtype=torch.float64, generator=torch.Generator().manual_seed(frame))
    torch.testing.assert_close(turn(x, frame).norm(), x.norm())


def test_equals_the_complex_product() -> None:
    """Token (frame, row, column) of a head of 128, with the frequencies 10000^(-2 j / d) of d = 44, 42, 42."""
    frames, (rows, columns) = torch.tensor([0, 5, 900]), (3, 4)
    angles = token_angles(temporal_angles(frames, 128), spatial_angles((rows, columns), 128))
    x = np.random.default_rng(0).standard_normal((3, rows * columns, 128))
    found = rotate(torch.from_numpy(x), angles.cos(), angles.sin())
    wanted = np.empty_like(x)
    for f, frame in enumerate(frames.tolist()):
        for token in range(rows * columns):
            position = [frame] * 22 + [token // columns] * 21 + [token % columns] * 21
            rate = np.concatenate([10000.0 ** (-2 * np.arange(d // 2) / d) for d in (44, 42, 42)])
            turned = x[f, token].view(np.complex128) * np.exp(1j * np.array(position) * rate)
            wanted[f, token] = turned.view(np.float64)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-10)


def test_rotate_keeps_the_dtype() -> None:
    angles = torch.zeros(4)
    x = torch.randn(8).bfloat16()
    assert torch.equal(rotate(x, angles.cos(), angles.sin()), x)


@given(times)
def test_predict_x0_inverts_add_noise(t: float) -> None:
    x0, noise = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(predict_x0(add_noise(x0, noise, t), noise - x0, t), x0, rtol=0, atol=1e-12)


@given(times)
def test_noising_is_the_weighted_mean(t: float) -> None:
    x0, noise = torch.tensor([2.0], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64)
    assert add_noise(x0, noise, t).item() == pytest.approx(2 - 5 * t, abs=1e-12)


def test_noise_at_times_0_and_1() -> None:
    x0, noise = torch.randn(2, 3, 4)
    assert torch.equal(add_noise(x0, noise, 0), x0)
    assert torch.equal(add_noise(x0, noise, 1), noise)


def test_time_of_each_frame() -> None:
    x0, noise = torch.randn(2, 1, 2, 3, 4, 4)
    t = torch.tensor([0.0, 0.5, 1.0])
    found = add_noise(x0, noise, t[:, None, None])
    for i, time in enumerate(t.tolist()):
        torch.testing.assert_close(found[:, :, i], add_noise(x0[:, :, i], noise[:, :, i], time))


def test_algebra_is_rounded_once() -> None:
    x0, noise = torch.randn(2, 1000).bfloat16()
    wanted = (0.231 * x0.double() + 0.769 * noise.double()).bfloat16()
    assert (add_noise(x0, noise, 0.769) == wanted).float().mean() > 0.99


@pytest.mark.parametrize(("u", "t"), [(0.2, 0.5556), (0.4, 0.7692), (0.6, 0.8824), (0.0, 0.0), (1.0, 1.0)])
def test_shift_of_the_released_schedule(u: float, t: float) -> None:
    assert shift_time(torch.tensor(u)).item() == pytest.approx(t, abs=5e-5)
