"""A stream of passes through the ring against the same clip in one causal call, at every phase of the window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import ClipAttention, RingGeometry
from lipstream_models.parts import StudentParts
from toys import CONFIG, toy_student, toy_text

CHUNKS = 6


@pytest.mark.parametrize(
    ("window", "sink", "chunk"),
    [(7, 1, 3), (6, 0, 3), (9, 3, 3), (10, 1, 3), (8, 2, 3), (10, 4, 3), (4, 1, 3), (5, 1, 2)],
)
@torch.no_grad()
def test_stream_equals_clip(window: int, sink: int, chunk: int) -> None:
    config = replace(CONFIG, window=window, sink=sink, chunk_frames=chunk)
    student, text = toy_student(config), toy_text(config)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    frames, size = CHUNKS * chunk, config.latent_size
    clean, noise = normal(config.latent_channels, frames, *size), normal(config.latent_channels, frames, *size)
    condition = normal(3 * config.latent_channels + 1, frames, *size)
    audio = normal(4 * frames, config.audio_dim)

    stream = TorchBackend(StudentParts(config, student, text)).open_steps()
    text_kv = student.text_kv(text[None])
    phases = set()
    for k in range(CHUNKS):
        own = slice(k * chunk, (k + 1) * chunk)
        sound = audio[4 * own.start : 4 * own.stop]
        phases.add(RingGeometry(window, sink, chunk).at(k).valid)
        stream.begin_chunk(k)
        for step, t in enumerate(config.t_list[:-1]):
            found = stream.denoise(noise[:, own].copy(), condition[:, own].copy(), sound, step)
            latent = torch.from_numpy(clean[:, : own.stop].copy())
            latent[:, own] = torch.from_numpy(noise[:, own])
            time = torch.zeros(1, own.stop, dtype=torch.float64)
            time[:, own] = t
            attend = ClipAttention(config, own.stop, causal=True)
            seen = torch.from_numpy(condition[None, :, : own.stop])
            features = torch.from_numpy(audio[None, : 4 * own.stop])
            wanted = student(latent[None], seen, features, time, text_kv, attend)[0, :, own].numpy()
            assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 2e-6
        stream.context(clean[:, own].copy(), condition[:, own].copy(), sound)
    assert phases == {*RingGeometry(window, sink, chunk).phases}


@torch.no_grad()
def test_past_frames_affect_the_result() -> None:
    """Old and recent frames both change the result, so a stream without memory would fail the test above."""
    backend = TorchBackend(StudentParts(CONFIG, toy_student(), toy_text()))
    rng = np.random.default_rng(0)
    latents, conditions = (rng.standard_normal((5, n, 3, *CONFIG.latent_size), np.float32) for n in (4, 13))
    audio = rng.standard_normal((5, 12, CONFIG.audio_dim), np.float32)

    def last(changed: int | None = None) -> np.ndarray:
        stream = backend.open_steps()
        for k in range(4):
            stream.begin_chunk(k)
            stream.context(-latents[k] if k == changed else latents[k], conditions[k], audio[k])
        stream.begin_chunk(4)
        return stream.denoise(latents[4], conditions[4], audio[4], 0)

    wanted = last()
    np.testing.assert_array_equal(last(), wanted)
    for changed in (0, 3):
        assert np.linalg.norm(last(changed) - wanted) / np.linalg.norm(wanted) > 1e-4
