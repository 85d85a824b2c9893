"""A stream whose "model" is a few lines of numpy: every output depends on every input, so any error changes pixels.

It makes sessions fast enough for hundreds of runs, and records the calls that it gets.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from lipstream.backends.stepped import SteppedStream
from lipstream.bundle import AudioGeometry, Geometry, Manifest
from lipstream.face import LipStreamFacePipeline
from lipstream.media import Picture
from lipstream.session import Frame, LipSyncSession
from lipstream.session.noise import noise_of
from lipstream.session.reference import SourceFrame
from numpy.typing import NDArray

Array = NDArray[np.float32]

SIDE = 16
GEOMETRY = Geometry(
    crop_size=(SIDE, SIDE),
    crop_box=(0.0, 0.0, 420.0, 560.0),
    latent_size=(2, 2),
    latent_channels=2,
    spatial=8,
    temporal=4,
    sequence="reference",
    chunk_frames=3,
    window=7,
    sink=1,
    tokens=1,
    num_heads=1,
    head_dim=6,
    num_layers=1,
)
AUDIO = AudioGeometry(sample_rate=16_000, samples_per_frame=640, lookback=1000, lookahead=530, features=3)
MANIFEST = Manifest({"name": "numpy"}, GEOMETRY, AUDIO, (0.999, 0.769, 0.0), "fp32")
TO_CANVAS = np.array([[420 / SIDE, 0, 0], [0, 560 / SIDE, 0]])
_WINDOW = AUDIO.lookback + AUDIO.samples_per_frame + AUDIO.lookahead
_EAR = np.random.default_rng(0).standard_normal((AUDIO.features, _WINDOW))


def hashed(x: Any) -> Array:
    """Values in [0, 1) that change strongly with a small change of `x`."""
    return np.asarray(np.modf(1e3 * np.asarray(x, np.float64))[0] % 1, np.float32)


class NumpyStream:
    """See `lipstream.backends.steps.Steps`.

    Attributes:
        calls: (name, argument) of each call.
        windows: the audio windows encoded.
        given: (latent, condition, audio) of each denoising pass.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.windows: list[Array] = []
        self.given: list[tuple[Array, Array, Array]] = []
        self._seen, self._said, self._decoded = 0.0, 0.0, 0.0

    def encode_audio(self, samples: Array) -> Array:
        self.calls.append(("audio", 0))
        self.windows.append(samples.copy())
        step = AUDIO.samples_per_frame
        return np.stack([hashed(_EAR @ samples[f * step : f * step + _WINDOW]) for f in range(12)])

    def encode_video(self, frames: Array) -> Array:
        self.calls.append(("video", 0))
        mean = frames.reshape(3, 4, -1).mean(axis=(1, 2), dtype=np.float64)
        self._seen = float(hashed(self._seen + mean.sum()))
        latents = np.broadcast_to(mean[None, None, :, None, None] + self._seen, (2, 2, 3, 2, 2))
        return hashed(latents + np.arange(2)[:, None, None, None, None] / 7)

    def begin_chunk(self, chunk: int) -> None:
        self.calls.append(("begin", chunk))

    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        self.calls.append(("denoise", step))
        self.given.append((latent.copy(), condition.copy(), audio.copy()))
        return latent - hashed(self._mix(latent, condition, audio) + step)

    def context(self, latent: Array, condition: Array, audio: Array) -> None:
        self.calls.append(("context", 0))
        self._said = float(hashed(self._said + self._mix(latent, condition, audio).mean()))

    def decode(self, latent: Array) -> Array:
        self.calls.append(("decode", 0))
        values = np.repeat(latent[0].mean(axis=(1, 2), dtype=np.float64), 4) + np.arange(12) / 12 + self._decoded
        self._decoded = float(hashed(values[-1]))
        return np.broadcast_to(hashed(values)[:, None, None, None], (12, 3, SIDE, SIDE)).copy()

    def _mix(self, latent: Array, condition: Array, audio: Array) -> Array:
        sound = audio.reshape(3, -1).mean(axis=1, dtype=np.float64)[:, None, None]
        return np.asarray(latent + condition.mean(axis=0, dtype=np.float64) + sound + self._said, np.float32)


class NumberedReference:
    """A reference whose frame i is flat grey, i modulo 251, and its own crop.

    The first `faceless` frames show no face. Attributes: asked: (first, count) of each call of `frames`.
    """

    def __init__(self, faceless: int = 0) -> None:
        self.faceless = faceless
        self.asked: deque[tuple[int, int]] = deque(maxlen=4)
        self.closed = False

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        self.asked.append((first, count))
        numbers = range(first, first + count)
        images = [np.full((SIDE, SIDE, 3), i % 251, np.uint8) for i in numbers]
        matrices = [None if i < self.faceless else TO_CANVAS for i in numbers]
        return [SourceFrame(Picture.of(image), image, matrix) for image, matrix in zip(images, matrices, strict=True)]

    def latents(self, first: int) -> None:
        """None: unknown."""

    def close(self) -> None:
        self.closed = True


POOL = ThreadPoolExecutor(2)


class OpenSession:
    """A `LipSyncSession` on the numpy stream, and its parts. Attributes: session, stream, reference."""

    def __init__(self, *, stream: Any = None, reference: Any = None, seed: int = 42, **options: Any) -> None:
        self.stream, self.reference = stream or NumpyStream(), reference or NumberedReference()
        face = LipStreamFacePipeline(GEOMETRY, np.zeros((SIDE, SIDE), np.float32))
        mask = np.zeros(GEOMETRY.latent_size, np.float32)
        chunks = SteppedStream(self.stream, MANIFEST.t_list, GEOMETRY.sequence, mask)
        self.session = LipSyncSession(
            MANIFEST, chunks, self.reference, face, POOL, noise=noise_of(None, MANIFEST, seed, None), **options
        )


def open_session(**options: Any) -> LipSyncSession:
    return OpenSession(**options).session


def speak(session: LipSyncSession, pcm: NDArray[Any], rate: int = 16_000, cuts: tuple[int, ...] = ()) -> list[Frame]:
    """All frames of one segment, pushed in pieces split at `cuts`, taken as soon as they are ready."""
    frames = []
    for piece in np.split(pcm, cuts):
        session.push_audio(piece, rate)
        frames += list(session)
    session.flush()
    return frames + list(session)


def noise(samples: int, channels: int = 0, seed: int = 0) -> Array:
    """Float32 in [-0.5, 0.5), [samples] or [samples, channels]."""
    shape = (samples, channels) if channels else (samples,)
    return np.random.default_rng(seed).random(shape, np.float32) - np.float32(0.5)


def assert_same_frames(found: list[Frame], expected: list[Frame]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.index, a.pts, a.bypassed, a.damaged) == (b.index, b.pts, b.bypassed, b.damaged)
        assert (a.segment, a.end_of_segment) == (b.segment, b.end_of_segment)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.audio, b.audio)
