"""The whole job on files: a video and a voice in, a lip-synced video out, in constant memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AudioTooShortError
from .media import AudioReader, VideoReader, VideoWriter, ensure_distinct, to_float
from .session import LipSyncSession

if TYPE_CHECKING:
    from .engine import LipSyncEngine

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class DubResult:
    """What a dub made, and how long it took.

    Attributes:
        output: the file. frames: written, floor(audio seconds * 25). bypassed: of these, untouched for want of a face.
        width, height: pixels of the source.
        seconds: wall time of the whole job, from opening the files to the finished one.
        first_frame: seconds from there to the first frame.
        stages: seconds per stage of the session, and "encode" for writing the file.
    """

    output: Path
    frames: int
    bypassed: int
    width: int
    height: int
    seconds: float
    first_frame: float
    stages: dict[str, float]

    @property
    def fps(self) -> float:
        return self.frames / self.seconds

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of video: below 1 is faster than real time."""
        return self.seconds * 25 / self.frames


def dub(
    engine: LipSyncEngine,
    video: Path_,
    audio: Path_ | None,
    output: Path_,
    *,
    crf: int = 18,
    preset: str = "veryfast",
    lossless: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> DubResult:
    """Make the face in `video` speak `audio`; the result has as many frames as the audio has whole 1/25 seconds.

    A video that is shorter is played back and forth, one that is longer is cut. Nothing is left at `output` if
    anything goes wrong, Ctrl-C included.

    Args:
        audio: any file with sound; None for the video's own.
        output: .mp4, .mov, .m4v or .mkv. crf, preset, lossless: see `lipstream.media.VideoWriter`.
        progress: called with (frames done, frames in all).
        options: of `LipSyncEngine.session`.

    Raises:
        AudioTooShortError: less than one frame, 40 ms.
        NoAudioError, AudioFormatError, OutputError, and what `LipSyncEngine.session` raises.
    """
    start = time.perf_counter()
    reader = AudioReader(video if audio is None else audio)
    ensure_distinct(output, video, reader.path)
    source = VideoReader(video)
    rate, fps = reader.info.rate, engine.manifest.geometry.fps
    # Counted, and checked, by reading it once: headers are wrong too often to promise a length by them.
    samples = sum(len(to_float(block)) for block in reader)
    total = samples * fps // rate
    if total < 1:
        raise AudioTooShortError(
            f"{reader.path} has {samples / rate * 1000:.0f} ms of sound",
            expected=f"at least {1000 // fps} ms, one video frame",
        )

    first_frame, writing, done, bypassed = 0.0, 0.0, 0, 0
    # The writer first: a place that cannot be written shows before anything that takes long.
    with VideoWriter(
        output,
        source.info.width,
        source.info.height,
        audio_rate=rate,
        audio_channels=reader.info.channels,
        crf=crf,
        preset=preset,
        lossless=lossless,
        colour=source.info.colour,
        sample_aspect_ratio=source.info.sample_aspect_ratio,
    ) as writer:
        with engine.session(video, length=total + engine.manifest.geometry.video_frames, **options) as session:
            for frame in _frames(session, reader):
                now = time.perf_counter()
                first_frame = first_frame or now - start
                writer.write(frame.image)
                writer.write_audio(frame.audio)
                writing += time.perf_counter() - now
                done += 1
                bypassed += frame.bypassed
                if progress:
                    progress(done, total)
        now = time.perf_counter()
        writer.close()
        writing += time.perf_counter() - now
        stages = session.timings | {"encode": writing}
    seconds = time.perf_counter() - start
    size = source.info.width, source.info.height
    return DubResult(Path(output), done, bypassed, *size, seconds, first_frame, stages)


def _frames(session: LipSyncSession, audio: AudioReader) -> Iterator[Any]:
    for block in audio:
        session.push_audio(block, audio.info.rate)
        yield from session
    session.flush()
    yield from session
