"""Dubs files: a video and speech in, a lip-synced video out, in constant memory."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .ahead import Ahead
from .backends.base import Array
from .checks import check_callable, check_path
from .errors import AudioTooShortError, QualityError
from .face import Doubt
from .media import FPS, AudioReader, VideoReader, VideoWriter, ensure_distinct, to_float
from .media.audio import silence
from .media.picture import Rgb
from .media.sandbox import FILES, SandboxedAudioReader, SandboxedReader
from .media.threads import may_overlap
from .media.video_codec import VideoCodec
from .session import Frame, LipSyncSession
from .session.pipeline import StageTimes
from .shutdown import check_running

Path_ = str | os.PathLike[str]
MANY = 0.1
"""Share of bypassed frames above which the result has a warning."""


@dataclass(frozen=True)
class DubResult:
    """Result and timings of a dub.

    Attributes:
        output: path of the file. frames: number of frames written, ceil(audio seconds * 25).
        bypassed: frames left unchanged because they show no face, or by the option `doubtful`.
        held: frames in which the face was not found, and its last place was used.
        doubtful: frames in which a generated mouth cannot be right; see `Frame.doubt`.
        first_face: the first frame with a face; all frames before it are unchanged.
        damaged: frames at which the source file is damaged.
        warnings: visible or audible defects, as text. notes: what was chosen or done to the source, no defects.
        width, height: pixels of the source.
        seconds: wall time of the job, from opening the inputs to closing the output.
        first_frame: seconds from the start of the job to the first frame.
        stages: seconds per stage of the session, and "encode" for writing the file.
    """

    output: Path
    frames: int
    bypassed: int
    held: int
    doubtful: int
    first_face: int
    damaged: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
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
        """Processing seconds per second of video; below 1 is faster than real time."""
        return self.seconds * FPS / self.frames


def dub(
    open_session: Callable[[VideoReader, int, Callable[[], Iterator[Array]], int], LipSyncSession],
    video: Path_,
    audio: Path_ | None,
    output: Path_,
    *,
    codec: VideoCodec | None,
    crf: int,
    preset: str,
    first_crf: int | None,
    lossless: bool,
    background: Rgb,
    strict: bool,
    progress: Callable[[int, int], None] | None,
    finish: Callable[[Path, int], None] | None,
    sandbox: bool,
    upstream: bool,
) -> DubResult:
    """Make the face in `video` speak `audio`, to its last sample: the result has ceil(audio seconds * 25) frames.

    A shorter video is played forwards and backwards, a longer one is cut. After an error, Ctrl-C included, no partial
    file is left at `output`.

    Args:
        open_session: opens a session on a reader, from which the given number of frames will be taken; it also gets
            a function that begins to read the sound, blocks float32 [n, channels], and its rate.
        audio: any file with sound; None for the sound of the video. Both keep their time stamps: sound that begins
            before the first picture is heard with that picture, and silence comes before sound that begins later.
        output: .mp4, .mov, .m4v or .mkv.
        codec, crf, preset, first_crf, lossless, background: see `lipstream.media.VideoWriter`.
        strict: raise QualityError in place of warnings, and write no file.
        progress: called with (frames done, total frames).
        finish: called with the complete file, which has still a hidden name, and its number of frames, to label it or
            to write others beside it. If it raises, no file is left at `output`.
        sandbox: decode both files in processes of their own, which have limits and no network (`media.sandbox`).
        upstream: read `video` as the upstream system does (`VideoReader`, opencv), ignore time stamps of the files'
            starts, and write as many frames, up to half a second fewer.

    Raises:
        AudioTooShortError: less than one frame, 40 ms.
        QualityError: with `strict`, in place of any warning.
        NoAudioError, AudioFormatError, OutputError, and what `open_session` raises.
    """
    start = time.perf_counter()
    check_path("video", video)
    check_path("output", output)
    if audio is not None:
        check_path("audio", audio)
    for name, callback in (("progress", progress), ("finish", finish)):
        if callback is not None:
            check_callable(name, callback)
    spoken = video if audio is None else audio
    sound = SandboxedAudioReader(spoken, limits=FILES, deadline=math.inf) if sandbox else AudioReader(spoken)
    ensure_distinct(output, video, sound.path)
    with closing(
        SandboxedReader(video, opencv=upstream, limits=FILES, deadline=math.inf)
        if sandbox
        else VideoReader(video, opencv=upstream)
    ) as source:
        rate = sound.info.rate
        # On one clock, that of the files' starts: the picture, or silence, begins earlier.
        before = 0.0 if upstream else source.info.start_time - sound.info.start_time
        held = math.floor(before * FPS) if 0 < before < _MOST_APART else 0
        source.hold_first(held)
        late = round((held / FPS - before) * rate) if abs(before) < _MOST_APART else 0
        # Read it once to count and check the samples: lengths in headers are often wrong.
        samples = late + sum(len(to_float(block)) for block in sound)
        total = upstream_frames(samples / rate) if upstream else -(-samples * FPS // rate)
        if samples * FPS < rate:
            raise AudioTooShortError(
                f"{sound.path} has {max(samples, 0) / rate * 1000:.0f} ms of sound",
                expected=f"at least {1000 // FPS} ms, one video frame",
            )

        tally, times = _Tally(), StageTimes()
        # Open the writer first, so that an output that cannot be written fails before the slow steps.
        with VideoWriter(
            output,
            source.info.width,
            source.info.height,
            audio_rate=rate,
            audio_channels=sound.info.channels,
            codec=codec,
            crf=crf,
            preset=preset,
            first_crf=first_crf,
            lossless=lossless,
            background=background,
            format=source.info.format,
            hdr=source.info.hdr,
            sample_aspect_ratio=source.info.sample_aspect_ratio,
        ) as writer:
            missing = -(-total * rate // FPS) - samples if upstream else 0  # of a short clip
            pushed = itertools.chain(
                _shifted(sound, late, samples), silence(max(0, missing), sound.info.channels, rate)
            )
            with (
                open_session(source, total, lambda: _shifted(sound, late, samples), rate) as session,
                Ahead(_frames(session, pushed, rate), _AHEAD if may_overlap() else 0) as frames,
            ):
                for frame in itertools.islice(frames, total):
                    check_running()
                    tally.first_frame = tally.first_frame or time.perf_counter() - start
                    with times("encode"):
                        writer.write(frame.picture)
                        writer.write_audio(frame.audio)
                    tally.count(frame)
                    if progress:
                        progress(tally.frames, total)
            warnings = [*tally.warnings(), *source.defects, *writer.losses]
            if strict and warnings:
                raise QualityError(
                    f"{video}: {'; '.join(warnings)}",
                    expected="a face in nearly every frame of an undamaged file, and an output that holds its pictures",
                    fix="use a better source or another codec, or leave out --strict",
                )
            with times("encode"):
                writer.close(finish and (lambda path: finish(path, tally.frames)))
            stages = session.timings | times.read()
        return DubResult(
            output=Path(output),
            frames=tally.frames,
            bypassed=tally.bypassed,
            held=tally.held,
            doubtful=tally.doubts.total(),
            first_face=tally.first_face,
            damaged=tally.damaged,
            warnings=tuple(warnings),
            notes=(*_notes(source, sound, held, late), *tally.notes()),
            width=source.info.width,
            height=source.info.height,
            seconds=time.perf_counter() - start,
            first_frame=tally.first_frame,
            stages=stages,
        )


def upstream_frames(seconds: float) -> int:
    """Frames that the upstream system writes for so much sound: whole chunks of three latent frames, at least one."""
    latent = 3 * max(1, (1 + (int(seconds * FPS) - 1) // 4) // 3)
    return 1 + 4 * (latent - 1)


_DOUBTED = 5
"""Frames from which on something that speaks against the mouth is worth a warning."""
_DOUBTS: dict[Doubt, str] = {
    "covered": "something seems to cover the mouth",
    "flat": "the face is drawn in flat colours, on which a mouth becomes a smear,",
}
_AHEAD = 3
"""Frames that are generated while earlier ones are encoded."""
_MOST_APART = 3600
"""Seconds between the starts of picture and sound above which a time stamp is taken as wrong."""
_LEAD = 4.0
"""Seconds of audio kept pending in the session, so that it can generate ahead."""


@dataclass
class _Tally:
    """Counters over the frames of one dub. Attributes: first_doubt: the first frame of each kind."""

    frames: int = 0
    bypassed: int = 0
    held: int = 0
    first_face: int = 0
    damaged: int = 0
    first_frame: float = 0.0
    doubts: Counter[Doubt] = field(default_factory=Counter)
    first_doubt: dict[Doubt, int] = field(default_factory=dict)

    def count(self, frame: Frame) -> None:
        if frame.doubt:
            self.doubts[frame.doubt] += 1
            self.first_doubt.setdefault(frame.doubt, self.frames)
        self.frames += 1
        self.bypassed += frame.bypassed
        self.held += frame.held
        self.damaged += frame.damaged
        if self.bypassed == self.frames:
            self.first_face = self.frames

    def warnings(self) -> list[str]:
        found = []
        if self.bypassed > MANY * self.frames:
            found.append(f"{self.bypassed} of {self.frames} frames are unchanged, most without a face")
        for doubt, count in self.doubts.items():
            if count >= _DOUBTED:
                found.append(f"{_DOUBTS[doubt]} in {count} frames, from {self.first_doubt[doubt] / FPS:.2f} s on")
        if self.damaged:
            found.append(f"the file is damaged at {self.damaged} of {self.frames} frames")
        return found

    def notes(self) -> list[str]:
        if not self.held:
            return []
        return [f"the face was not found in {self.held} frames; its last place was used"]


def _notes(source: VideoReader, sound: AudioReader, held: int, late: int) -> Iterator[str]:
    info = sound.info
    if info.tracks > 1:
        yield f"the sound is audio track {info.track} of {info.tracks}"
    if held:
        yield f"the first picture is shown {held / FPS:.2f} s earlier, where the sound begins"
    if late > info.rate // FPS:
        yield f"the sound begins {late / info.rate:.2f} s after the picture"
    if source.interlaced:
        yield "interlaced pictures were deinterlaced"


def _shifted(sound: AudioReader, late: int, samples: int) -> Iterator[NDArray[np.float32]]:
    """Yield the blocks of `sound` delayed by `late` samples (negative: first samples dropped), `samples` in total."""
    if late > 0:
        yield from silence(min(late, samples), sound.info.channels, sound.info.rate)
    skip, left = max(-late, 0), samples - max(late, 0)
    for block in sound:
        piece = block[skip : skip + max(left, 0)]
        skip = max(skip - len(block), 0)
        left -= len(piece)
        yield piece


def _frames(session: LipSyncSession, blocks: Iterator[NDArray[np.float32]], rate: int) -> Iterator[Frame]:
    pushed = taken = 0
    for block in blocks:
        # In pieces: a block may be longer than the session's max_pending.
        for start in range(0, len(block), rate):
            pushed += session.push_audio(block[start : start + rate], rate)
            while taken < (pushed / rate - _LEAD) * FPS and (frame := next(iter(session), None)):
                taken += 1
                yield frame
    session.flush()
    yield from session
