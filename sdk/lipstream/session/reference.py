"""The reference: the video whose lips are re-spoken, turned chunk by chunk into frames, aligned crops and latents.

A live reference is decoded, searched for the face and encoded as the stream goes. A prepared one went through that
once, as an endless loop, and any number of sessions play it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, Stream
from ..bundle import Geometry, Manifest
from ..errors import ConfigError, FaceNotFoundError
from ..face import FaceTracker, Tracker, crop, upstream
from ..face.tracking import Policy
from ..media import FPS, FrameLoop, FrameSpool, VideoReader, ping_pong
from ..media.image import check_picture

Image = NDArray[np.uint8]
Source = str | os.PathLike[str] | Sequence[Image] | Image
"""A video file, or frames: a sequence of uint8 [H, W, 3] RGB, or one array [n, H, W, 3], at 25 a second."""

LOOP_BYTES = 2 << 30
"""Disk that the frames of one looped reference may take by default: 14 s of 1080p, 31 s of 720p."""


@dataclass(frozen=True)
class FaceOptions:
    """How faces are treated.

    Attributes:
        policy: for frames without the face. "hold": go on with its last place; "bypass": show the frame untouched;
            "raise": FaceNotFoundError.
        at: (x, y) in pixels near the wanted face in the first frame; None for the largest.
        insightface: folder of InsightFace's models, to find faces as the released system does (they are for
            non-commercial research only); None for the networks that LipStream ships.
        compat: crop as the released system does, and take a video's frames as they are stored (`face.upstream`).
    """

    policy: Policy = "hold"
    at: tuple[float, float] | None = None
    insightface: Path | None = None
    compat: bool = False

    def crop(self, frame: Image, matrix: NDArray[np.float64], geometry: Geometry) -> Image:
        """The aligned face, uint8 [S, S, 3]."""
        if self.compat:
            return upstream.crop(frame, matrix, geometry.crop_size[0])
        return crop(frame, matrix, geometry.crop_size[0], geometry.crop_box)

    def tracker(self) -> Tracker:
        """A tracker for one video. Raises as they do."""
        if self.insightface is None:
            return FaceTracker(self.policy, self.at)
        from ..face.insightface import InsightFaceTracker

        return InsightFaceTracker(self.insightface, self.policy, self.at)


@dataclass(frozen=True)
class SourceFrame:
    """One frame to be re-spoken.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        crop: uint8 [S, S, 3], the aligned face; the last one seen where there is none.
        matrix: float64 [2, 3], frame pixels -> alignment canvas; None where the frame is to be shown untouched.
        damaged: the file is damaged here, and its decoder has patched the picture up.
    """

    image: Image
    crop: Image
    matrix: NDArray[np.float64] | None
    damaged: bool = False


class Reference(Protocol):
    """Frames of one session by their place in its picture, 0, 1, 2, ... without end, and their latents."""

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        """Frames ``[first, first + count)``. `first` never lies more than three chunks before the last frame given."""

    def latents(self, first: int) -> Array | None:
        """Latents [2, C, c, h, w] of a chunk whose frames start at `first`, as they are and with the mouth masked.

        None where they are not known: the chunk's crops are to be encoded.
        """

    def close(self) -> None: ...


_KEPT = 3  # chunks: one that is started, one that is handed out, one that nobody saw


class LiveReference:
    """Decodes, tracks and encodes as it goes. Memory does not grow with the length.

    Args:
        source: see `Source`.
        length: frames that will be asked for, None if unknown. What need not be shown again is not kept; without a
            length, a longer source is played back and forth up to where its frames take `loop_bytes` on disk.

    Raises:
        FaceNotFoundError: no face in the first half minute.
        ConfigError, MediaOpenError, NoVideoError, MediaTruncatedError: of the source.
    """

    def __init__(
        self,
        source: Source,
        geometry: Geometry,
        faces: FaceOptions,
        *,
        length: int | None = None,
        loop_bytes: int = LOOP_BYTES,
    ) -> None:
        self._frames = open_source(source, retimed=not faces.compat)
        self._tracker = require_face(self._frames, faces)
        self._loop = FrameLoop(self._frames, length, max_bytes=loop_bytes)
        self._geometry = geometry
        self._faces = faces
        self._matrices: dict[int, NDArray[np.float64] | None] = {}
        self._crop = np.full((*geometry.crop_size, 3), 127, np.uint8)
        self._recent: deque[SourceFrame] = deque(maxlen=_KEPT * geometry.video_frames)
        self._given = 0

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        """See `Reference`; beyond the length the reference was opened for, the last frame again."""
        while self._given < first + count:
            self._recent.append(self._next())
            self._given += 1
        oldest = self._given - len(self._recent)
        return [self._recent[i - oldest] for i in range(first, first + count)]

    def latents(self, first: int) -> None:
        """None: nothing is known before it is encoded."""

    def close(self) -> None:
        self._loop.close()

    def _next(self) -> SourceFrame:
        step = next(self._loop, None)
        if step is None:
            return self._recent[-1]
        index, image = step
        if index in self._matrices:
            matrix = self._matrices[index]
        else:
            seen = self._tracker.track(image)
            matrix = None if seen is None else seen.matrix
            if self._loop.comes_back(index):
                self._matrices[index] = matrix
        if matrix is not None:
            self._crop = self._faces.crop(image, matrix, self._geometry)
        damaged = isinstance(self._frames, VideoReader) and self._frames.damaged(index)
        return SourceFrame(image, self._crop, matrix, damaged)


_FORGOTTEN = 3  # chunks after which no latent depends on how the stream began: the encoder looks back 30 frames


class PreparedReference:
    """A reference decoded, tracked and encoded once, as an endless ping-pong; immutable, shared by any sessions.

    It begins with the first frame that shows a face. The latents that are played for ever are taken from the second lap
    or later, when the encoder has forgotten the beginning. Frames lie in a temporary file that is gone with the object;
    memory holds their transforms and the latents of two laps.

    Args:
        seconds: of the source, at most; as much of it as fits into `max_bytes` on disk.

    Attributes:
        manifest: of the bundle that it was encoded with. faces: how it was tracked. frames: number of source frames.
        skipped: frames before the first face, left out.
    """

    def __init__(
        self,
        source: Source,
        stream: Stream,
        manifest: Manifest,
        faces: FaceOptions,
        *,
        seconds: float = 20.0,
        max_bytes: int = LOOP_BYTES,
    ) -> None:
        if not 0 < seconds < math.inf:
            raise ConfigError(f"{seconds} seconds of reference", expected="more than 0")
        self.manifest, self.faces = manifest, faces
        self._geometry = geometry = manifest.geometry
        opened = open_source(source, retimed=not faces.compat)
        tracker = require_face(opened, faces)
        self._spool = FrameSpool()
        self._matrices: list[NDArray[np.float64] | None] = []
        self._size: tuple[int, ...] | None = None
        self.skipped = 0
        for image in itertools.islice(opened, max(1, int(seconds * FPS))):
            check_picture(image, self._size, f"frame {len(self._matrices) + self.skipped}")
            self._size = image.shape
            seen = tracker.track(image)
            if seen is None and not self._matrices:
                self.skipped += 1
                continue
            if self._matrices and (len(self._matrices) + 1) * image.nbytes > max_bytes:
                break
            self._spool.append(image)
            self._matrices.append(None if seen is None else seen.matrix)
        if not self._matrices:
            raise no_face(self.skipped)
        self._crop_of = _last_seen(self._matrices)
        chunk, lead = geometry.video_frames, geometry.first_frames
        count = len(self._matrices)
        # A lap must be whole chunks: turning round a few frames before the end makes it so.
        if count > chunk // 2:
            count -= (count - 1) % (chunk // 2)
        self.frames = count
        self._lap = math.lcm(max(1, 2 * count - 2), chunk) // chunk
        self._steady = max(self._lap + 1, _FORGOTTEN)
        self._latents: list[Array] = []
        for first, length in [(0, lead), *((lead + chunk * i, chunk) for i in range(self._steady + self._lap - 1))]:
            crops = [self.at(first + i).crop for i in range(length)]
            self._latents.append(stream.encode_video(stack_crops(geometry, crops)))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of its frames."""
        assert self._size is not None
        height, width = self._size[:2]
        return width, height

    def at(self, place: int) -> SourceFrame:
        """Frame `place` = 0, 1, 2, ... of the endless loop."""
        index = ping_pong(place, self.frames)
        image = self._spool.read(index)
        seen = self._crop_of[index]
        shown = image if seen == index else self._spool.read(seen)
        matrix = self._matrices[seen]
        assert matrix is not None
        face = self.faces.crop(shown, matrix, self._geometry)
        return SourceFrame(image, face, self._matrices[index])

    def play(self) -> PreparedPlayback:
        """A playback for one session, from the start."""
        return PreparedPlayback(self)

    def latents(self, first: int) -> Array | None:
        """Latents of the chunk that starts at frame `first` of the loop; None where no chunk of the loop starts."""
        chunk, lead = self._geometry.video_frames, self._geometry.first_frames
        number, odd = (0, 0) if first == 0 else divmod(first - lead + chunk, chunk)
        if odd or (first and first < lead):
            return None
        if number >= self._steady:
            number = self._steady + (number - self._steady) % self._lap
        return self._latents[number]


class PreparedPlayback:
    """One session's way through a `PreparedReference`; see `Reference`.

    A chunk that does not start where one of the loop does, as after a `flush` in the middle of one, is encoded anew.
    """

    def __init__(self, prepared: PreparedReference) -> None:
        self._prepared = prepared

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        return [self._prepared.at(first + i) for i in range(count)]

    def latents(self, first: int) -> Array | None:
        return self._prepared.latents(first)

    def close(self) -> None:
        """Nothing to release: the prepared reference outlives its sessions."""


def _last_seen(matrices: Sequence[object]) -> list[int]:
    """For each frame the last one up to it that has a matrix; the first has one."""
    seen, last = [], 0
    for index, matrix in enumerate(matrices):
        last = index if matrix is not None else last
        seen.append(last)
    return seen


def stack_crops(geometry: Geometry, crops: list[Image]) -> Array:
    """Crops of a chunk, as the video encoder takes them: float32 [n, 3, H, W] in [0, 1].

    The stream's first chunk has fewer: its first frame stands for `temporal`.
    """
    missing = geometry.video_frames - len(crops)
    frames = np.stack([crops[0]] * missing + crops).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(frames, np.float32) / np.float32(255)


def open_source(source: Source, *, retimed: bool = True) -> VideoReader | Sequence[Image] | Image:
    """Frames to iterate, any number of times. Raises ConfigError for what is neither a path nor frames."""
    if isinstance(source, str | os.PathLike):
        return VideoReader(Path(source), retimed=retimed)
    if isinstance(source, np.ndarray):
        found, fit = f"of shape {list(source.shape)}", source.ndim == 4
    else:
        found = f"of type {type(source).__name__}"
        fit = isinstance(source, Sequence) and all(isinstance(frame, np.ndarray) for frame in source)
    if not fit or not len(source):
        raise ConfigError(f"a reference {found}", expected="a path, or one or more frames: uint8 [n, H, W, 3]")
    return source


def require_face(frames: Iterable[Image], faces: FaceOptions, *, every: int = 10, limit: int = 750) -> Tracker:
    """Look at every tenth of the first `limit` frames until one shows a face.

    Returns:
        a tracker for the video, which remembers nothing of that; loading another takes 20 ms.

    Raises:
        FaceNotFoundError: none does.
    """
    # A tracker confirms by its landmarks what the detector alone might only believe.
    tracker = faces.tracker()
    asked, tracker.policy = tracker.policy, "bypass"
    for index, frame in enumerate(frames):
        if index >= limit:
            break
        if index % every == 0:
            tracker.reset()  # each look is as thorough as the first
            if tracker.track(frame):
                tracker.reset()
                tracker.policy = asked
                return tracker
    raise no_face(min(index + 1, limit))


def no_face(frames: int) -> FaceNotFoundError:
    return FaceNotFoundError(
        f"no face in the first {frames} frames",
        frame=0,
        expected="a face at least about 40 pixels wide, seen from the front or slightly from the side",
        fix="use a video that shows the speaker's face",
    )
