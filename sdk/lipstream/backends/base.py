"""What a backend is: a loaded bundle that opens streams. The denoising loop and the session see nothing else of it."""

from __future__ import annotations

import inspect
import os
from importlib.metadata import entry_points
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BackendError

Array = NDArray[np.float32]
GRAPHS = ("audio_encoder", "video_encoder", "denoiser", "context", "video_decoder")


class Stream(Protocol):
    """All state of one stream on one backend: the K/V ring and the memories of the video encoder and decoder.

    Sizes: c = chunk_frames latent frames, n = temporal * c video frames, C latent channels, A audio features.
    Arrays are float32; a returned array belongs to the caller. Not thread-safe: one stream, one caller.
    """

    def encode_audio(self, samples: Array) -> Array:
        """Samples [lookback + n * samples_per_frame + lookahead] in [-1, 1] -> features [n, A]. Has no state."""

    def encode_video(self, frames: Array) -> Array:
        """Aligned crops [n, 3, H, W] in [0, 1] -> latents [2, C, c, h, w]: as they are, and with the mouth masked."""

    def begin_chunk(self, chunk: int) -> None:
        """Make room in the ring for `chunk` = 0, 1, 2, ...; before the first pass of that chunk."""

    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        """Pass `step` of the schedule: latent [C, c, h, w], condition [3 C + 1, c, h, w], audio [n, A] -> velocity."""

    def context(self, latent: Array, condition: Array, audio: Array) -> None:
        """The pass at t = 0 over the finished chunk; what it writes to the ring is what later chunks see."""

    def decode(self, latent: Array) -> Array:
        """Latents [C, c, h, w] -> frames [n, 3, H, W] in [0, 1]."""


class Backend(Protocol):
    """A bundle, loaded. Immutable and thread-safe; streams share its weights."""

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None: ...

    def open_stream(self) -> Stream: ...


def load_backend(name: str, bundle: Bundle, *, threads: int = 0, **options: str) -> Backend:
    """The backend called `name` with `bundle` loaded; `threads` is the number of CPU threads, 0 for all cores.

    `options` are the backend's own ("provider" of onnxruntime).

    Raises:
        BackendError: no such backend, or what it needs is not installed.
    """
    found = {entry.name: entry for entry in entry_points(group="lipstream.backends")}
    if name not in found:
        raise BackendError(f"no backend is called {name!r}", expected=f"one of: {', '.join(sorted(found))}")
    try:
        backend = found[name].load()
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} needs the module {error.name!r}, which is not installed",
            fix=f"pip install 'lipstream[{EXTRAS[name]}]'"
            if name in EXTRAS
            else "pip install --force-reinstall lipstream",
        ) from error
    if unknown := sorted({*options} - {*inspect.signature(backend).parameters}):
        raise BackendError(f"backend {name!r} has no option {', '.join(unknown)}", fix="leave it out")
    return cast(Backend, backend(bundle, threads=threads, **options))


def cores() -> int:
    """CPU cores that this process may use."""
    # macOS and Windows have no affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(bundle: Bundle) -> int:
    """CPU threads that pay for one stream of `bundle`, at most the cores of this process.

    With a small one more than two were not measured; graphs so small have little to share out.
    """
    return min(cores(), MOST_FOR_SMALL) if bundle.manifest.model.get("parameters", 0) < SMALL else cores()


SMALL = 20e6
"""Parameters of a small model."""
MOST_FOR_SMALL = 2
EXTRAS = {"torch": "export", "tensorrt": "tensorrt"}
