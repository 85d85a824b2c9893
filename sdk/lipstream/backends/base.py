"""The interface of backends: a loaded bundle opens streams, which turn crops and sound into generated chunks."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BackendError, LipStreamInternalError
from ..face import Overlay
from ..media.av_frame import Plane

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Pictures = Array | Bytes
"""RGB: float32 in [0, 1], or uint8, rounded from it."""
GRAPHS = ("audio_encoder", "video_encoder", "denoiser", "video_decoder")
Timed = Callable[[str], AbstractContextManager[None]]
"""``with timed("decode"): ...`` adds the time spent inside to that stage's."""

SMALL = 20e6
"""Parameters below which a model is small."""
MOST_FOR_SMALL = 2
EXTRAS = {"torch": "export", "tensorrt": "tensorrt"}
"""The extra of the package that installs what each backend needs."""


@dataclass(frozen=True)
class ChunkInput:
    """Inputs of one chunk.

    Sizes: c = chunk_frames latent frames, n = temporal * c video frames, C latent channels.

    Attributes:
        number: of the chunk in its stream, 0, 1, 2, ...
        crops: uint8 [n, H, W, 3], aligned; None where `latents` are known.
        latents: float32 [2, C, c, h, w] of the crops, as they are and with the mouth masked; or None.
        samples: float32 [lookback + n * samples_per_frame + lookahead] in [-1, 1], the audio encoder's window.
        features: float32 [n, A] of the sound, by `Backend.encode_clip`; None: the stream computes them from `samples`.
        noises: unit noise [C, c, h, w] for each pass.
        overlays: for each of the n - `missing` pictures, how it goes into its frame, None where it goes into none: a
            stream that composites then gives patches in place of crops.
        missing: how many pictures fewer than n the chunk has. A stream's first latent frame holds one video frame, so
            its first crop and first features are repeated in front.
    """

    number: int
    crops: Bytes | None
    latents: Array | None
    samples: Array
    noises: Sequence[Array]
    missing: int
    overlays: Sequence[Overlay | None] | None = None
    features: Array | None = None


class PendingChunk(Protocol):
    """A chunk that was started."""

    def crops(self) -> Pictures:
        """Wait for crops [n - missing, H, W, 3], valid until two more chunks are started.

        float32 in [0, 1] as computed, which whoever uses them checks for values that are not finite; or uint8, clamped
        and rounded half to even.

        Raises:
            LipStreamInternalError: crops that are uint8 were rounded from values that were not finite.
        """

    def patches(self) -> list[list[Plane] | None]:
        """Wait for the samples of each overlay's regions with the crop in them, valid as long as `crops`.

        Only of a chunk that was started with overlays, by a stream that composites.

        Raises:
            LipStreamInternalError: as of `crops`.
        """
        raise LipStreamInternalError("this stream does not composite")

    def drop(self) -> None:
        """Discard the chunk; the next one that is started has the same number and replaces it."""


class ChunkStream(Protocol):
    """All state of one stream on one backend: the K/V ring, and the memories of video encoder and decoder.

    Not thread-safe: one caller at a time.

    Attributes:
        ahead: whether `start` returns before the chunk is done, so that the next one should be started before this
            one's pictures are taken.
        composites: whether it takes overlays.
    """

    ahead: bool
    composites: bool

    def start(self, chunk: ChunkInput, timed: Timed) -> PendingChunk:
        """Start a chunk; at most one other may be pending."""

    def encode_video(self, crops: Bytes) -> Array:
        """Crops uint8 [n, H, W, 3] -> latents [2, C, c, h, w], as they are and with the mouth masked.

        For preparing a reference, on a separate stream, because it advances the encoder's memory.
        """

    def close(self) -> None:
        """Release the memory. May be called again."""


class Backend(Protocol):
    """A loaded bundle. Immutable and thread-safe; streams share its weights.

    An entry point of the group `lipstream.backends` is called with the bundle, `threads` and the backend's own options;
    it returns the backend.

    Attributes:
        reuses_streams: whether what a closed stream leaves (memory, captured graphs) serves the next one, so that
            warming several at once makes as many later sessions start fast.
    """

    reuses_streams: bool

    def open_stream(self) -> ChunkStream:
        """Open a new stream, at its first chunk."""

    @property
    def encode_clip(self) -> Callable[[Array, int], Array] | None:
        """Function of the samples [n] in [-1, 1] of a whole clip, and of a number of frames f: features [f, A].

        f is from ceil(n / samples_per_frame) to `CLIP_FRAMES`; the normalised samples are continued by zeros where they
        are fewer. Thread-safe. None where the audio encoder would compute from a whole clip what it
        computes from the windows of its chunks, or cannot.
        """


def load_backend(name: str, bundle: Bundle, *, threads: int = 0, **options: str) -> Backend:
    """Load `bundle` on the backend `name`; `threads` is the number of CPU threads, 0 for `default_threads`.

    `options` are the backend's own ("provider" of onnxruntime).

    Raises:
        BackendError: no such backend, or a module that it needs is not installed.
    """
    found = {entry.name: entry for entry in entry_points(group="lipstream.backends")}
    if name not in found:
        raise BackendError(f"no backend is named {name!r}", expected=f"one of: {', '.join(sorted(found))}")
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
    # macOS and Windows do not report an affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(bundle: Bundle) -> int:
    """Number of CPU threads for one stream of `bundle`, at most the cores of this process.

    For a small model at most two: its graphs have little parallel work; more than two were not tried.
    """
    return min(cores(), MOST_FOR_SMALL) if bundle.manifest.model.get("parameters", 0) < SMALL else cores()
