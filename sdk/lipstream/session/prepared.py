"""A reference that is decoded, tracked and encoded once, and played by any number of sessions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from ..backends import ChunkStream
from ..backends.base import Array
from ..bundle import Manifest
from ..checks import check_number
from ..errors import ConfigError
from ..face import FaceOptions, FacePipeline
from ..media import FPS, FrameSpool, ping_pong
from ..media.pixel_format import PictureFormat
from ..shutdown import check_running
from .reference import (
    LOOP_BYTES,
    FaceObserver,
    Observed,
    Source,
    SourceFrame,
    no_face,
    open_source,
    pictures,
    require_face,
    stack_crops,
)

_FORGOTTEN = 3  # chunks after which latents do not depend on the stream's start: the encoder looks back 30 frames


class PreparedReference:
    """A reference decoded, tracked and encoded once, as an endless ping-pong; immutable, shared by any sessions.

    It begins with the first frame that shows a face. The repeated latents are those of the second lap or later, which
    do not depend on the stream's start. Frames are in a temporary file, deleted with the object; memory holds their
    transforms and the latents of two laps.

    Args:
        seconds: at most so much of the source is used, and no more than fits into `max_bytes` on disk.

    Attributes:
        manifest: of the bundle that it was encoded with. face: how it was tracked. frames: number of source frames.
        skipped: number of frames before the first face, which are not used.
    """

    def __init__(
        self,
        source: Source,
        stream: ChunkStream,
        manifest: Manifest,
        face: FaceOptions,
        pipeline: FacePipeline,
        *,
        seconds: float = 20.0,
        max_bytes: int = LOOP_BYTES,
    ) -> None:
        check_number("seconds", seconds, expected="seconds of the video, more than 0")
        self.manifest, self.face, self._pipeline = manifest, face, pipeline
        self._geometry = geometry = manifest.geometry
        opened = open_source(source, opencv=face.upstream)
        observe = FaceObserver(face, require_face(pictures(opened), face), pipeline)
        self._spool = FrameSpool()
        self._observed: list[Observed] = []
        self._format: PictureFormat | None = None
        self.skipped = 0
        for picture in itertools.islice(pictures(opened), max(1, int(seconds * FPS))):
            self._format = self._format or picture.format
            if picture.format != self._format:
                number = len(self._observed) + self.skipped
                raise ConfigError(f"frame {number} is {picture.format}", expected=f"{self._format}, like the others")
            check_running()
            observed = replace(observe(picture), crop=None)
            if observed.matrix is None and not self._observed:
                self.skipped += 1
                continue
            if self._observed and (len(self._observed) + 1) * picture.nbytes > max_bytes:
                break
            self._spool.append(picture)
            self._observed.append(observed)
        if not self._observed:
            raise no_face(self.skipped, face)
        self._crop_of = _last_seen([observed.matrix for observed in self._observed])
        chunk, lead = geometry.video_frames, geometry.first_frames
        count = len(self._observed)
        # A lap must be whole chunks, so it reverses a few frames before the end.
        if count > chunk // 2:
            count -= (count - 1) % (chunk // 2)
        self.frames = count
        self._lap = math.lcm(max(1, 2 * count - 2), chunk) // chunk
        self._steady = max(self._lap + 1, _FORGOTTEN)
        self._latents: list[Array] = []
        for first, length in [(0, lead), *((lead + chunk * i, chunk) for i in range(self._steady + self._lap - 1))]:
            check_running()
            crops = [self.at(first + i).crop for i in range(length)]
            self._latents.append(stream.encode_video(stack_crops(geometry, crops)))

    def __repr__(self) -> str:
        width, height = self.size
        return f"<PreparedReference {width}x{height}, {self.frames} frames>"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of its frames."""
        assert self._format is not None
        return self._format.width, self._format.height

    def at(self, place: int) -> SourceFrame:
        """Frame `place` = 0, 1, 2, ... of the endless loop."""
        index = ping_pong(place, self.frames)
        picture = self._spool.read(index)
        seen = self._crop_of[index]
        shown = picture if seen == index else self._spool.read(seen)
        matrix, observed = self._observed[seen].matrix, self._observed[index]
        assert matrix is not None
        crop = self._pipeline.crop(shown, matrix)
        return SourceFrame(picture, crop, observed.matrix, observed.held, observed.doubt)

    def play(self) -> PreparedPlayback:
        """A playback for one session, from the start."""
        return PreparedPlayback(self)

    def latents(self, first: int) -> Array | None:
        """Latents of the chunk that starts at frame `first` of the loop; None if no chunk of the loop starts there."""
        chunk, lead = self._geometry.video_frames, self._geometry.first_frames
        number, odd = (0, 0) if first == 0 else divmod(first - lead + chunk, chunk)
        if odd or (first and first < lead):
            return None
        if number >= self._steady:
            number = self._steady + (number - self._steady) % self._lap
        return self._latents[number]


class PreparedPlayback:
    """Playback of a `PreparedReference` in one session; see `Reference`.

    A chunk that is not aligned with the chunks of the loop, as after a `flush` within a chunk, is encoded again.
    """

    def __init__(self, prepared: PreparedReference) -> None:
        self._prepared = prepared

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        return [self._prepared.at(first + i) for i in range(count)]

    def latents(self, first: int) -> Array | None:
        return self._prepared.latents(first)

    def close(self) -> None:
        """Do nothing: the prepared reference outlives its sessions."""


def _last_seen(matrices: Sequence[object]) -> list[int]:
    """For each frame the index of the last frame up to it that has a matrix; the first frame has one."""
    seen, last = [], 0
    for index, matrix in enumerate(matrices):
        last = index if matrix is not None else last
        seen.append(last)
    return seen
