"""A baseline with the structure of the released code: the time of a stream without our ring.

K is stored before RoPE. Every layer of every pass concatenates K and V of sink, window and chunk into new tensors,
renumbers the frames of the window, and rotates all keys in float64; frames leave the window by a copy. Weights,
constants and everything else are those of the eager student, and so are the velocities, except for rounding.
"""

from __future__ import annotations

import torch
from lipstream.backends.base import Array
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import StudentConfig
from lipstream_models.dit import attention
from lipstream_models.rope import spatial_angles, temporal_angles, token_angles
from torch import Tensor


class WindowCache:
    """Self-attention of a stream over its joined window; for `CausalDiT.denoise` and `context`."""

    def __init__(self, config: StudentConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._spatial = spatial_angles(config.grid, config.head_dim)
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * config.num_layers

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [1, c T, H, D], not rotated -> attention output."""
        c = self._config
        keys, values = self._window(layer, k, v)
        frames = keys.shape[1] // c.tokens
        keys = self._rotated(keys, range(frames))
        return attention(self._rotated(q, range(frames - c.chunk_frames, frames)), keys.to(v.dtype), values)

    def leave(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store K and V in the context pass, for the frames that the next chunk's window can contain."""
        c = self._config
        keys, values = self._all(layer, k, v)
        if (over := keys.shape[1] // c.tokens - c.window) > 0:
            cut = slice(c.sink * c.tokens, (c.sink + over) * c.tokens)
            keys, values = (torch.cat([x[:, : cut.start], x[:, cut.stop :]], 1) for x in (keys, values))
        self._kept[layer] = keys.clone(), values.clone()

    def context(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the context pass, which then stores K and V."""
        out = self(layer, q, k, v)
        self.leave(layer, k, v)
        return out

    def _all(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        before = self._kept[layer]
        return (k, v) if before is None else (torch.cat([before[0], k], 1), torch.cat([before[1], v], 1))

    def _window(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        c = self._config
        before = self._kept[layer]
        if before is None:
            return k, v
        held = before[0].shape[1] // c.tokens
        first = max(c.sink, held + c.chunk_frames - (c.window - c.sink))
        parts = [
            torch.cat([x[:, : c.sink * c.tokens], x[:, first * c.tokens :], own], 1)
            for x, own in zip(before, (k, v), strict=True)
        ]
        return parts[0], parts[1]

    def _rotated(self, x: Tensor, frames: range) -> Tensor:
        angles = token_angles(temporal_angles(torch.tensor([*frames]), self._config.head_dim), self._spatial)
        turn = torch.polar(torch.ones_like(angles), angles).flatten(0, 1)[None, :, None].to(self._device)
        pairs = torch.view_as_complex(torch.unflatten(x.double(), -1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


class UpstreamSteps:
    """The passes of a bundle's student in this structure; called as `lipstream.backends.steps.Steps` is."""

    def __init__(self, backend: TorchBackend) -> None:
        assert backend.parts.student, "the bundle has no denoiser"
        self._student, self._constants = backend.parts.student, backend.constants
        self._cache = WindowCache(backend.parts.config, torch.device("cpu"))
        self._context = len(backend.parts.config.t_list) - 1
        text = {name: x[None] for name, x in self._constants.items() if name.startswith("text_")}
        self._text = [(text[f"text_k.{i}"], text[f"text_v.{i}"]) for i in range(backend.parts.config.num_layers)]

    def begin_chunk(self, chunk: int) -> None:
        """Nothing to do: the cache's length determines the position."""

    @torch.inference_mode()
    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        modulation = self._constants[f"modulation.{step}"]
        chunk = (torch.from_numpy(x) for x in (latent, condition, audio))
        velocity: Array = self._student.denoise(*chunk, modulation, self._text, self._cache).numpy()
        return velocity

    @torch.inference_mode()
    def context(self, latent: Array, condition: Array, audio: Array) -> None:
        modulation = self._constants[f"modulation.{self._context}"]
        chunk = (torch.from_numpy(x) for x in (latent, condition, audio))
        self._student.context(*chunk, modulation, self._text, self._cache.context, self._cache.leave)
