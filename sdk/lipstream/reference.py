"""The reference: the video whose lips are re-spoken, turned chunk by chunk into frames, aligned crops and latents.

A live reference is decoded, searched for the face and encoded as the stream goes. A prepared one went through that
once, as an endless loop, and any number of sessions play it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .backends.base import Array, Stream
from .bundle import Geometry, Manifest
from .errors import ConfigError, FaceNotFoundError
from .face import FaceTracker, crop
from .face.track import Policy
from .media import FrameLoop, VideoReader, ping_pong

Image = NDArray[np.uint8]
Source = str | os.PathLike[str] | Sequence[Image] | Image
"""A video file, or frames: a sequence of uint8 [H, W, 3] RGB, or one array [n, H, W, 3], at 25 a second."""


@dataclass(frozen=True)
class FaceOptions:
    """How faces are treated.

    Attributes:
        policy: for frames without the face. "hold": go on with its last place; "bypass": show the frame untouched;
            "raise": FaceNotFoundError.
        at: (x, y) in pixels near the wanted face in the first frame; None for the largest.
    """

    policy: Policy = "hold"
    at: tuple[float, float] | None = None


@dataclass(frozen=True)
class SourceFrame:
    """One frame to be re-spoken.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        crop: uint8 [S, S, 3], the aligned face.
        matrix: float64 [2, 3], frame pixels -> alignment canvas; None where the frame is to be shown untouched.
    """

    image: Image
    crop: Image
    matrix: NDArray[np.float64] | None


@dataclass(frozen=True)
class ReferenceChunk:
    """Frames of one chunk, and their latents [2, C, c, h, w]: as they are, and with the mouth masked."""

    frames: list[SourceFrame]
    latents: Array


class Reference(Protocol):
    """Gives the chunks of one session, in order, without end (or until the length it was opened for)."""

    def chunk(self, stream: Stream, count: int) -> ReferenceChunk:
        """The next `count` frames; `stream` carries the video encoder's state."""

    def close(self) -> None: ...


class LiveReference:
    """Decodes, tracks and encodes as it goes. Memory does not grow with the length.

    Args:
        source: see `Source`. length: frames that will be asked for, None if unknown; a source that is longer need not
            be kept for looping then.

    Raises:
        FaceNotFoundError: no face in the first half minute.
        ConfigError, MediaOpenError, NoVideoError, MediaTruncatedError: of the source.
    """

    def __init__(self, source: Source, geometry: Geometry, faces: FaceOptions, *, length: int | None = None) -> None:
        self._frames = open_source(source)
        require_face(self._frames)
        self._loop = FrameLoop(self._frames, length)
        self._geometry = geometry
        self._tracker = FaceTracker(faces.policy, faces.at)
        self._matrices: dict[int, NDArray[np.float64] | None] = {}
        self._crop = np.full((*geometry.crop_size, 3), 127, np.uint8)
        self._last: SourceFrame | None = None

    def frames(self, count: int) -> list[SourceFrame]:
        """The next `count` frames; beyond the length the reference was opened for, the last one again."""
        return [self._next() for _ in range(count)]

    def chunk(self, stream: Stream, count: int) -> ReferenceChunk:
        frames = self.frames(count)
        return ReferenceChunk(frames, encode(stream, self._geometry, [frame.crop for frame in frames]))

    def close(self) -> None:
        self._loop.close()

    def _next(self) -> SourceFrame:
        step = next(self._loop, None)
        if step is None:
            assert self._last is not None
            return self._last
        index, image = step
        if index not in self._matrices:
            seen = self._tracker.track(image)
            self._matrices[index] = None if seen is None else seen.matrix
        matrix = self._matrices[index]
        if matrix is not None:
            self._crop = crop(image, matrix, self._geometry.crop_size[0])
        self._last = SourceFrame(image, self._crop, matrix)
        return self._last


_FORGOTTEN = 3  # chunks after which no latent depends on how the stream began: the encoder looks back 30 frames


class PreparedReference:
    """A reference decoded, tracked and encoded once, as an endless ping-pong; immutable, shared by any sessions.

    The latents that are played for ever are taken from the second lap or later, when the encoder has forgotten the
    beginning. Memory: the decoded frames (3 bytes a pixel) and the latents of two laps.

    Attributes:
        manifest: of the bundle that it was encoded with. frames: number of source frames.
    """

    def __init__(
        self, source: Source, stream: Stream, manifest: Manifest, faces: FaceOptions, *, seconds: float = 20.0
    ) -> None:
        if not 0 < seconds < math.inf:
            raise ConfigError(f"{seconds} seconds of reference", expected="more than 0")
        self.manifest, geometry = manifest, manifest.geometry
        limit = max(1, int(seconds * geometry.fps))
        images = list(itertools.islice(open_source(source), limit))
        live = LiveReference(images, geometry, faces)
        chunk = geometry.video_frames
        lead = chunk - geometry.temporal + 1
        count = len(images)
        # A lap must be whole chunks: turning round a few frames before the end makes it so.
        if count > chunk // 2:
            count -= (count - 1) % (chunk // 2)
        self._sources = live.frames(count)
        live.close()
        self.frames = count
        self._lap = math.lcm(max(1, 2 * count - 2), chunk) // chunk
        self._steady = max(self._lap + 1, _FORGOTTEN)
        self._latents: list[Array] = []
        for first, length in [(0, lead), *((lead + chunk * i, chunk) for i in range(self._steady + self._lap - 1))]:
            crops = [self._at(first + i).crop for i in range(length)]
            self._latents.append(encode(stream, geometry, crops))

    def _at(self, frame: int) -> SourceFrame:
        return self._sources[ping_pong(frame, self.frames)]

    def play(self) -> PreparedPlayback:
        """A playback for one session, from the start."""
        return PreparedPlayback(self)

    def latents(self, chunk: int) -> Array:
        """Latents of chunk 0, 1, 2, ... of the endless loop."""
        if chunk >= self._steady:
            chunk = self._steady + (chunk - self._steady) % self._lap
        return self._latents[chunk]


class PreparedPlayback:
    """One session's place in a `PreparedReference`; see `Reference`."""

    def __init__(self, prepared: PreparedReference) -> None:
        self._prepared = prepared
        self._chunk = self._frame = 0

    def chunk(self, stream: Stream, count: int) -> ReferenceChunk:
        frames = [self._prepared._at(self._frame + i) for i in range(count)]
        latents = self._prepared.latents(self._chunk)
        self._chunk += 1
        self._frame += count
        return ReferenceChunk(frames, latents)

    def close(self) -> None:
        """Nothing to release: the prepared reference outlives its sessions."""


def encode(stream: Stream, geometry: Geometry, crops: list[Image]) -> Array:
    """Crops of a chunk -> latents. The stream's first chunk has fewer: its first frame stands for `temporal`."""
    missing = geometry.video_frames - len(crops)
    frames = np.stack([crops[0]] * missing + crops).transpose(0, 3, 1, 2)
    return stream.encode_video(np.ascontiguousarray(frames, np.float32) / np.float32(255))


def open_source(source: Source) -> VideoReader | Sequence[Image] | Image:
    """Frames to iterate, any number of times. Raises ConfigError for what is neither a path nor frames."""
    if isinstance(source, str | os.PathLike):
        return VideoReader(Path(source))
    if isinstance(source, np.ndarray):
        found, fit = f"of shape {list(source.shape)}", source.ndim == 4
    else:
        found = f"of type {type(source).__name__}"
        fit = isinstance(source, Sequence) and all(isinstance(frame, np.ndarray) for frame in source)
    if not fit or not len(source):
        raise ConfigError(f"a reference {found}", expected="a path, or one or more frames: uint8 [n, H, W, 3]")
    return source


def require_face(frames: Iterable[Image], *, every: int = 10, limit: int = 750) -> None:
    """Look at every tenth of the first `limit` frames until one shows a face.

    Raises:
        FaceNotFoundError: none does.
    """
    for index, frame in enumerate(frames):
        if index >= limit:
            break
        # A tracker confirms by its landmarks what the detector alone might only believe.
        if index % every == 0 and FaceTracker("bypass").track(frame):
            return
    raise FaceNotFoundError(
        f"no face in the first {min(index + 1, limit)} frames",
        frame=0,
        expected="a face at least about 40 pixels wide, seen from the front or slightly from the side",
        fix="use a video that shows the speaker's face",
    )
