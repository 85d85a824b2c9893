"""The denoising loop: noise and conditions of a chunk in, its clean latents out, in the passes of the schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .base import Array
from .steps import Steps


def predict_x0(x_t: Array, velocity: Array, t: float) -> Array:
    """The clean latent predicted by `velocity` (noise - x0): ``x_t - t * velocity``, in float64 (rectified flow)."""
    return (x_t.astype(np.float64) - t * velocity.astype(np.float64)).astype(np.float32)


def add_noise(x0: Array, noise: Array, t: float) -> Array:
    """The clean latent noised to time `t`: ``(1 - t) x0 + t noise``, in float64."""
    return ((1 - t) * x0.astype(np.float64) + t * noise.astype(np.float64)).astype(np.float32)


def generate_chunk(
    steps: Steps,
    t_list: Sequence[float],
    noises: Sequence[Array],
    condition: Array,
    audio: Array,
    *,
    on_velocity: Callable[[int, Array], None] | None = None,
) -> Array:
    """Denoise one chunk, after `steps.begin_chunk`. The caller runs `steps.context` later: the frames come first.

    Args:
        t_list: times of the passes, noisiest first, ending in 0.
        noises: fresh unit noise [C, c, h, w] for each pass. The first is the initial latent, used unscaled.
        condition: [3 C + 1, c, h, w]. audio: [n, A].
        on_velocity: called with (step, velocity) after each pass.

    Returns:
        The clean latents [C, c, h, w].
    """
    x = noises[0]
    x0 = x
    for step, t in enumerate(t_list[:-1]):
        if step:
            x = add_noise(x0, noises[step], t)
        velocity = steps.denoise(x, condition, audio, step)
        if on_velocity:
            on_velocity(step, velocity)
        x0 = predict_x0(x, velocity, t)
    return x0


def assemble_condition(identity: Array, latent_mask: Array, masked: Array, sequence: Array) -> Array:
    """The constant channels of the DiT's input, [3 C + 1, c, h, w], in the released order.

    Args:
        identity: latents [C, 1, h, w] of the frame that shows the person, repeated over the chunk.
        latent_mask: [h, w], 1 where the picture is kept; the model's input is the inverse, 1 where it generates.
        masked, sequence: latents of the chunk [C, c, h, w]: with the mouth masked; see `Geometry.sequence`.
    """
    frames = masked.shape[1]
    mask = np.broadcast_to(1 - latent_mask, (1, frames, *latent_mask.shape))
    return np.concatenate([np.repeat(identity, frames, axis=1), mask, masked, sequence]).astype(np.float32)
