"""What a backend is: a loaded bundle that opens streams. The denoising loop and the session see nothing else of it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol, cast, runtime_checkable

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


Timed = Callable[[str], AbstractContextManager[None]]
"""``with timed("decode"): ...`` counts what is inside as that stage's."""


@dataclass(frozen=True)
class ChunkInput:
    """What one chunk is made of. Sizes as of `Stream`.

    Attributes:
        number: of the chunk in its stream, 0, 1, 2, ...
        crops: aligned crops [n, 3, H, W] in [0, 1]; None where `latents` are known.
        latents: [2, C, c, h, w] of the crops, or None.
        samples: what the audio encoder hears.
        noises: unit noise [C, c, h, w] for each pass.
        missing: pictures that the chunk has fewer than n: the stream's first stands for several, so its first crop and
            its first features stand for those before them.
    """

    number: int
    crops: Array | None
    latents: Array | None
    samples: Array
    noises: Sequence[Array]
    missing: int


class PendingChunk(Protocol):
    """A chunk that was started."""

    def pictures(self) -> Array:
        """Crops [n - missing, H, W, 3] in [0, 1], waited for; to be read before the next but one starts."""

    def drop(self) -> None:
        """Forget it: the next chunk that is started has its number, and takes its place."""


@runtime_checkable
class ChunkStream(Protocol):
    """A stream that is asked for whole chunks. Not thread-safe.

    Attributes:
        ahead: whether starting returns before the chunk is done, so that the next one should be started before this
            one's pictures are taken.
    """

    ahead: bool

    def start(self, chunk: ChunkInput, timed: Timed) -> PendingChunk:
        """Begin with a chunk; at most one other is pending."""

    def close(self) -> None:
        """Give its memory back. May be called again."""


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
