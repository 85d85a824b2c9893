"""The noise of a stream: by a seed and the chunk's number, as the released system draws it, or given by the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ..backends.base import Array
from ..bundle import Manifest
from ..errors import ConfigError, MissingExtraError

Noise = Callable[[int], Sequence[Array]]
"""Number of a chunk -> unit noise float32 [C, c, h, w] for each pass."""
NoiseOption = Literal["torch"] | Noise | None


def noise_of(option: NoiseOption, manifest: Manifest, seed: int, latent_frames: int | None) -> Noise:
    """The noise that a user chose.

    Args:
        option: None: a function of the seed and the chunk alone. "torch": as the released script draws it on the CPU,
            by a torch generator of that seed for a clip of `latent_frames`. A function: see `Noise`; its results are
            checked.

    Raises:
        ConfigError: another option or seed, or "torch" without a known length.
        MissingExtraError: torch is not installed.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ConfigError(f"seed={seed!r}", expected="a whole number from 0 to 2^64 - 1")
    g, seed = manifest.geometry, int(seed)
    shape, passes = (g.latent_channels, g.chunk_frames, *g.latent_size), len(manifest.t_list) - 1

    def by_chunk(chunk: int) -> list[Array]:
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, chunk]))
        return [rng.standard_normal(shape, np.float32) for _ in range(passes)]

    if option is None:
        return by_chunk
    if option == "torch":
        if latent_frames is None:
            raise ConfigError(
                'noise="torch" for a session without an end', expected="a length", fix="length=, or engine.dub()"
            )
        return _of_torch(seed, shape, passes, latent_frames)
    if not callable(option):
        raise ConfigError(f"noise {option!r}", expected='None, "torch", or a function of a chunk number')
    given = option

    def checked(chunk: int) -> list[Array]:
        found = [np.asarray(x, np.float32) for x in given(chunk)]
        if [x.shape for x in found] != [shape] * passes or not all(np.isfinite(x).all() for x in found):
            raise ConfigError(
                f"noise of shapes {[list(x.shape) for x in found]} for chunk {chunk}",
                expected=f"{passes} finite arrays of shape {list(shape)}",
            )
        return found

    return checked


def _of_torch(seed: int, shape: tuple[int, ...], passes: int, latent_frames: int) -> Noise:
    """One draw for the first pass of all chunks, then one for each chunk and later pass, in float32 on the CPU."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "the noise of torch needs the module 'torch', which is not installed", fix="pip install 'lipstream[export]'"
        ) from error
    generator = torch.Generator().manual_seed(seed)
    channels, frames, height, width = shape
    latent_frames = -(-latent_frames // frames) * frames
    first = torch.randn(1, channels, latent_frames, height, width, generator=generator)[0].numpy()
    later: list[list[Array]] = []

    def of(chunk: int) -> list[Array]:
        while len(later) <= chunk:
            draws = (torch.randn(1, *shape, generator=generator)[0].numpy() for _ in range(passes - 1))
            later.append([*draws])
        begun = min(chunk * frames, latent_frames - frames)  # a chunk may be started beyond the end, and dropped
        return [np.ascontiguousarray(first[:, begun : begun + frames]), *later[chunk]]

    return of
