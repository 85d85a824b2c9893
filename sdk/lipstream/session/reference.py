"""The reference: the video to be lip-synced, converted chunk by chunk to frames, aligned crops and latents.

The live reference of this module is decoded, tracked and encoded during the session; a prepared one (`prepared.py`) in
advance.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..ahead import Ahead
from ..backends.base import Array, Bytes
from ..bundle import Geometry
from ..errors import ConfigError, FaceNotFoundError
from ..face import Doubt, FaceOptions, FacePipeline, MouthWatch, Tracker
from ..media import FrameLoop, VideoReader
from ..media.picture import Image, Picture, as_picture
from ..media.threads import may_overlap
from ..shutdown import check_running

Source = str | os.PathLike[str] | VideoReader | Sequence[Image] | Image
"""A video file, or frames: a sequence of uint8 [H, W, 3] RGB, or one array [n, H, W, 3], at 25 a second."""

LOOP_BYTES = 2 << 30
"""Default limit in bytes of temporary disk for a looped reference: 28 s of 1080p, 62 s of 720p, 8 bit 4:2:0."""


@dataclass(frozen=True)
class SourceFrame:
    """One frame to be lip-synced.

    Attributes:
        picture: as the source has it.
        crop: uint8 [S, S, 3], the aligned face; if the frame has none, the last one before it.
        matrix: float64 [2, 3], frame pixels -> alignment canvas; None if the frame is to be shown unchanged.
        held: the face was not found, and is taken to be where it was before.
        doubt: why a generated mouth cannot be right in this frame; None if nothing speaks against it.
        damaged: the file is damaged here, and the decoder has concealed the error.
    """

    picture: Picture
    crop: Image
    matrix: NDArray[np.float64] | None
    held: bool = False
    doubt: Doubt | None = None
    damaged: bool = False


class Reference(Protocol):
    """Frames of one session by index, 0, 1, 2, ... without end, and their latents."""

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        """Frames ``[first, first + count)``; `first` is at most three chunks before the last frame returned."""

    def latents(self, first: int) -> Array | None:
        """Latents [2, C, c, h, w] of a chunk whose frames start at `first`, as they are and with the mouth masked.

        None if they are not known: then the chunk's crops must be encoded.
        """

    def close(self) -> None: ...


_AHEAD = 4  # frames tracked before they are requested
_KEPT = 3  # chunks that may be requested again: one started, one queued, one not shown


class LiveReference:
    """Decodes and tracks during the session. Memory use does not depend on the length.

    Args:
        source: see `Source`.
        length: number of frames that will be requested, None if unknown. With it frames are tracked ahead, those that
            are shown only once are not stored, and beyond it the last one is repeated. Without it, playback reverses
            where the frames on disk reach `loop_bytes`.

    Raises:
        FaceNotFoundError: no face in the first 30 seconds.
        ConfigError, MediaOpenError, NoVideoError, MediaTruncatedError: of the source.
    """

    def __init__(
        self,
        source: Source,
        geometry: Geometry,
        face: FaceOptions,
        pipeline: FacePipeline,
        *,
        length: int | None = None,
        loop_bytes: int = LOOP_BYTES,
    ) -> None:
        opened = open_source(source, opencv=face.upstream)
        self._loop = FrameLoop(opened, length, max_bytes=loop_bytes)
        grey = np.full((*geometry.crop_size, 3), 127, np.uint8)
        tracked = _tracked(opened, self._loop, FaceObserver(face, face.tracker(), pipeline), grey)
        first = next(tracked)
        if first.matrix is None and first.doubt is None:
            require_face(pictures(opened), face)
        # Only where every frame will be requested: in real time it would only hold more pictures in memory.
        ahead = _AHEAD if length and may_overlap() else 0
        self._frames = Ahead(itertools.chain([first], tracked), ahead)
        kept = _KEPT if length else _KEPT + 1  # without an end, another chunk may be prefetched
        self._recent: deque[SourceFrame] = deque(maxlen=kept * geometry.video_frames)
        self._given = 0

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        """See `Reference`; beyond `length` the last frame is repeated."""
        while self._given < first + count:
            self._recent.append(next(self._frames, None) or self._recent[-1])
            self._given += 1
        oldest = self._given - len(self._recent)
        return [self._recent[i - oldest] for i in range(first, first + count)]

    def latents(self, first: int) -> None:
        """None: latents are not known in advance."""

    def close(self) -> None:
        self._frames.close()
        self._loop.close()
        self._recent.clear()  # a closed session may be collected much later


@dataclass(frozen=True)
class Observed:
    """The face in one frame; see `SourceFrame`. Attributes: crop: None without a matrix."""

    matrix: NDArray[np.float64] | None = None
    crop: Image | None = None
    held: bool = False
    doubt: Doubt | None = None


class FaceObserver:
    """Tracks the face of a video, and judges whether its mouth can be repainted. Not thread-safe.

    Attributes:
        again: whether a frame that is shown once more is observed once more, as the upstream system does.
    """

    def __init__(self, face: FaceOptions, tracker: Tracker, pipeline: FacePipeline) -> None:
        self._bypass, self.again = face.doubtful == "bypass", face.upstream
        self._held: Image | None = None  # upstream: the last crop of a face that was found, shown where it is not
        self._tracker, self._watch, self.crop = tracker, MouthWatch(), pipeline.crop

    def __call__(self, picture: Picture) -> Observed:
        """The face in the next frame of the video."""
        seen = self._tracker.track(picture)
        if seen is None:
            return Observed()
        crop = self.crop(picture, seen.matrix) if self._held is None or not seen.held else self._held
        if self.again:
            self._held = crop
        doubt = None if seen.held else self._watch(crop, seen.scene)  # only a face that was found
        if doubt and self._bypass:
            return Observed(doubt=doubt)
        return Observed(seen.matrix, crop, seen.held, doubt)


def _tracked(
    source: VideoReader | Sequence[Image] | Image, loop: FrameLoop, observe: FaceObserver, crop: Image
) -> Iterator[SourceFrame]:
    """The frames of `loop`, over `source`, with their faces; `crop` is that of a frame before the first face."""
    known: dict[int, Observed] = {}
    for index, picture in loop:
        seen = known.get(index)
        if seen is None:
            seen = observe(picture)
            if loop.comes_back(index) and not observe.again:
                known[index] = replace(seen, crop=None)
        if seen.matrix is not None:
            crop = observe.crop(picture, seen.matrix) if seen.crop is None else seen.crop
        damaged = isinstance(source, VideoReader) and source.damaged(index)
        yield SourceFrame(picture, crop, seen.matrix, seen.held, seen.doubt, damaged)


def stack_crops(geometry: Geometry, crops: list[Image]) -> Bytes:
    """Crops of a chunk, uint8 [n, H, W, 3]; see `ChunkInput`.

    The stream's first chunk has fewer: its first frame is repeated `temporal` times.
    """
    missing = geometry.video_frames - len(crops)
    return np.stack([crops[0]] * missing + crops)


def open_source(source: Source, *, opencv: bool = False) -> VideoReader | Sequence[Image] | Image:
    """Return frames that can be iterated any number of times. Raises ConfigError for neither a path nor frames."""
    if isinstance(source, VideoReader):
        return source
    if isinstance(source, str | os.PathLike):
        return VideoReader(Path(source), opencv=opencv)
    if isinstance(source, np.ndarray):
        found, fit = f"of shape {list(source.shape)}", source.ndim == 4
    else:
        found = f"of type {type(source).__name__}"
        fit = isinstance(source, Sequence) and all(isinstance(frame, np.ndarray) for frame in source)
    if not fit or not len(source):
        raise ConfigError(f"a reference {found}", expected="a path, or one or more frames: uint8 [n, H, W, 3]")
    return source


def pictures(source: VideoReader | Sequence[Image] | Image) -> Iterator[Picture]:
    """One pass over the frames of an opened source. Raises ConfigError for a frame that is not uint8 [H, W, 3]."""
    if isinstance(source, VideoReader):
        return source.pictures()
    return (as_picture(frame, f"frame {index}") for index, frame in enumerate(source))


def require_face(frames: Iterable[Picture], face: FaceOptions, *, every: int = 10, limit: int = 750) -> Tracker:
    """Search every tenth of the first `limit` frames until one shows a face.

    Returns:
        A tracker in its initial state, for the video; it is returned because loading another takes 20 ms.

    Raises:
        FaceNotFoundError: none of them shows a face.
    """
    # With a tracker, because its landmarks confirm what the detector finds.
    tracker = face.tracker()
    asked, tracker.policy = tracker.policy, "bypass"
    for index, frame in enumerate(frames):
        if index >= limit:
            break
        if index % every == 0:
            check_running()
            tracker.reset()  # each search is as thorough as the first
            if tracker.track(frame):
                tracker.reset()
                tracker.policy = asked
                return tracker
    raise no_face(min(index + 1, limit), face)


def no_face(frames: int, face: FaceOptions) -> FaceNotFoundError:
    near = f" near {face.at[0]:g}, {face.at[1]:g}" if face.at else ""
    return FaceNotFoundError(
        f"no face{near} in the first {frames} frames",
        frame=0,
        expected="a face at least about 40 pixels wide, seen from the front or slightly from the side",
        fix="give a point on the face, or none" if near else "use a video that shows the speaker's face",
    )
