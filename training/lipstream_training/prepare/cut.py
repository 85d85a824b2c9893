"""A video -> clips of 81 aligned crops, and the reasons why other stretches are dropped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lipstream.errors import LipStreamError, MediaTruncatedError, NoAudioError
from lipstream.face import FaceDetector, FaceObservation, FaceTracker, crop, lip_gap
from lipstream.face.landmarks import bounding_box
from lipstream.media import VideoReader, ping_pong
from lipstream_evaluate.faces import squares, sync_crop
from lipstream_evaluate.media import loudness, read_sound
from lipstream_evaluate.syncnet import SyncNet, sync_score
from lipstream_models.mel import PAST_FRAMES, SAMPLES_AFTER, SAMPLES_PER_FRAME
from numpy.typing import NDArray

from .filters import Filters
from .sample import members, picture, picture_bytes, video_bytes
from .settings import FRAMES, Settings

_SECOND = 25  # frames between two searches for other faces; also the least length of a reference
_NO_FACE_SHOWN = 75  # frames without a face for each line of the report

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Stretch:
    """A line of the report. `dropped`: why, "" if kept. `thumbnail`: JPEG, base64."""

    start: int
    frames: int
    dropped: str
    measured: dict[str, float] = field(default_factory=dict)
    thumbnail: str = ""


@dataclass
class _Window:
    """Consecutive frames that show the face."""

    start: int
    crops: list[Image] = field(default_factory=list)
    lips: list[Image] = field(default_factory=list)
    boxes: list[NDArray[np.float64]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    sharp: list[float] = field(default_factory=list)
    others: float = 0.0


@dataclass(frozen=True)
class _Candidate:
    start: int
    frames: int
    video: Path
    picture: bytes
    measured: dict[str, float]
    good: bool  # as a clip; else a reference only


@dataclass
class Cut:
    """The clips and the report of one source.

    Attributes:
        samples: of each clip the end of its key, and a function that makes its files, which are large.
        stretches: in order of time. note: on the source as a whole.
    """

    samples: list[tuple[str, Callable[[], dict[str, bytes]]]] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    note: str = ""


def cut_video(path: Path, settings: Settings, syncnet: SyncNet | None, work: Path) -> Cut:
    """Clips of 81 consecutive frames that pass every filter. For a video that cannot be read the report has the reason.

    Crops are kept as files in the folder `work` until the samples have been made, so memory grows with the length of
    the video only by its sound.
    """
    cut = Cut()
    try:
        sound = read_sound(path)
    except NoAudioError:
        cut.stretches.append(Stretch(0, 0, "no audio"))
        return cut
    except MediaTruncatedError:
        cut.stretches.append(Stretch(0, 0, "truncated: the file ends before its sound does"))
        return cut
    except LipStreamError as error:
        cut.stretches.append(Stretch(0, 0, f"unreadable: {error.found}"))
        return cut
    judge = _Judge(settings, sound, syncnet, work)
    candidates: list[_Candidate] = []
    try:
        for window, why in _windows(path, settings, syncnet):
            found = judge(window, why)
            if isinstance(found, _Candidate):
                candidates.append(found)
            else:
                cut.stretches.append(found)
    except LipStreamError as error:
        cut.note = f"read up to where it breaks: {error.found}"
    clips = [candidate for candidate in candidates if candidate.good]
    for clip in clips:
        reference = _reference(clip, clips, candidates)
        if reference is None:
            cut.stretches.append(
                Stretch(clip.start, FRAMES, "too short: no other part for the reference", clip.measured, _small(clip))
            )
            continue
        cut.stretches.append(Stretch(clip.start, FRAMES, "", clip.measured, _small(clip)))
        cut.samples.append((f"{clip.start:07d}", partial(_files, clip, reference, sound, settings, path.name)))
    for rest in candidates:
        if not rest.good and not clips:
            cut.stretches.append(Stretch(rest.start, rest.frames, f"too short: {rest.frames} frames", rest.measured))
    cut.stretches.sort(key=lambda stretch: stretch.start)
    return cut


def _files(
    clip: _Candidate, reference: _Candidate, sound: NDArray[np.float32], settings: Settings, source: str
) -> dict[str, bytes]:
    about = {
        "source": source,
        "start": clip.start,
        "reference_start": reference.start,
        "student": settings.student,
        "measured": clip.measured,
    }
    videos = clip.video.read_bytes(), reference.video.read_bytes()
    return members(*videos, reference.picture, _around(sound, clip.start), settings.kind, about)


def _windows(path: Path, settings: Settings, syncnet: SyncNet | None) -> Iterator[tuple[_Window, str]]:
    """Windows of up to 81 frames; those that end earlier with the reason why."""
    tracker, detector = FaceTracker("bypass"), FaceDetector()
    filters, config = settings.filters, settings.config
    window = _Window(0)
    missing = 0
    for index, frame in enumerate(VideoReader(path)):
        face = tracker.track(frame)
        why = "no face" if face is None else _unfit(face, window, filters)
        if why and window.crops:
            yield window, why
            window = _Window(index)
        if face is None:
            if missing % _NO_FACE_SHOWN == 0:
                nothing = _Window(index, [_thumbnail(frame)])
                yield nothing, "no face"
            missing += 1
            window = _Window(index + 1)
            continue
        missing = 0
        if why and not why.startswith("a jump"):  # a face too small
            yield _Window(index, [crop(frame, face.matrix, settings.size, config.crop_box)]), why
            window = _Window(index + 1)
            continue
        box = bounding_box(face.landmarks).astype(np.float64)
        window.boxes.append(box)
        window.gaps.append(lip_gap(face.landmarks))
        window.crops.append(crop(frame, face.matrix, settings.size, config.crop_box))
        window.sharp.append(_sharpness(frame, box))
        if syncnet is not None:
            window.lips.append(sync_crop(frame, syncnet.config, squares(box[None])[0], face.matrix))
        if filters.others and index % _SECOND == 0:
            window.others = max(window.others, other_faces(detector, frame, box))
        if len(window.crops) == FRAMES:
            yield window, ""
            window = _Window(index + 1)
    if window.crops:
        yield window, "end"


def _unfit(face: FaceObservation, window: _Window, filters: Filters) -> str:
    x0, y0, x1, y1 = (float(v) for v in bounding_box(face.landmarks))
    if y1 - y0 < filters.face:
        return f"small face: {y1 - y0:.0f} pixels"
    if filters.jump and window.boxes:
        before = window.boxes[-1]
        moved = np.hypot((x0 + x1 - before[0] - before[2]) / 2, (y0 + y1 - before[1] - before[3]) / 2)
        if moved > filters.jump * (y1 - y0):
            return "a jump of the face: a cut, or too fast"
    return ""


class _Judge:
    """Return the candidate of a window, or the report's reason for dropping it."""

    def __init__(self, settings: Settings, sound: NDArray[np.float32], syncnet: SyncNet | None, work: Path) -> None:
        self._settings, self._sound, self._syncnet, self._work = settings, sound, syncnet, work

    def __call__(self, window: _Window, why: str) -> _Candidate | Stretch:
        frames = len(window.crops)
        first = encoded_thumbnail(window.crops[0])
        if not window.boxes:
            return Stretch(window.start, frames, why, {}, first)
        measured = self._measure(window)
        filters = self._settings.filters
        if fault := _fault(measured, filters):
            return Stretch(window.start, frames, fault, measured, first)
        if frames == FRAMES:
            if fault := self._unsound(measured, window):
                return Stretch(window.start, frames, fault, measured, first)
        elif why != "end" or frames < _SECOND:
            reason = why if why != "end" else f"too short: {frames} frames"
            return Stretch(window.start, frames, reason, measured, first)
        crops = [window.crops[ping_pong(i, frames)] for i in range(FRAMES)]
        middle = picture_bytes(window.crops[frames // 2])
        video = self._work / f"{window.start}.{self._settings.kind}"
        video.write_bytes(video_bytes(crops, self._settings.kind))
        return _Candidate(window.start, frames, video, middle, measured, frames == FRAMES)

    def _measure(self, window: _Window) -> dict[str, float]:
        level = loudness(self._sound[window.start * SAMPLES_PER_FRAME :], len(window.crops))
        peak = float(level.max())
        speech = float((level > 0.1 * peak).mean()) if peak else 0.0
        numbers = {
            "sharpness": float(np.median(window.sharp)),
            "others": window.others,
            "loudness": peak,
            "speech": speech,
            "mouth": float(np.std(window.gaps)),
        }
        return {name: round(x, 5) for name, x in numbers.items()}

    def _unsound(self, measured: dict[str, float], window: _Window) -> str:
        """Return what is wrong with a whole clip's sound: silent, unrelated to this mouth, or out of sync."""
        filters = self._settings.filters
        if measured["loudness"] < filters.loudness:
            return "silent"
        if measured["speech"] < filters.speech:
            return "hardly any speech"
        if measured["mouth"] < filters.mouth:
            return "the mouth does not move"
        if self._syncnet is None:
            return ""
        start = window.start * SAMPLES_PER_FRAME
        found = sync_score(
            self._syncnet, np.stack(window.lips), self._sound[start : start + FRAMES * SAMPLES_PER_FRAME]
        )
        if found is None:
            return "the sound ends before the picture"
        measured |= {"sync_c": round(found.confidence, 3), "offset": float(found.offset)}
        if found.confidence < filters.confidence:
            return f"no sync: Sync-C {found.confidence:.2f}"
        if filters.offset and abs(found.offset) > filters.offset:
            return f"out of sync: the mouth is {abs(found.offset)} frames {'late' if found.offset > 0 else 'early'}"
        return ""


def _fault(measured: dict[str, float], filters: Filters) -> str:
    """Return what is wrong with the pictures."""
    if measured["sharpness"] < filters.sharpness:
        return f"blurred: sharpness {measured['sharpness']:.1f}"
    if filters.others and measured["others"] > filters.others:
        return "more than one face"
    return ""


def _reference(clip: _Candidate, clips: list[_Candidate], candidates: list[_Candidate]) -> _Candidate | None:
    """Another part of the same video: the clip half of their number further on, else the longest dropped candidate."""
    if len(clips) > 1:
        return clips[(clips.index(clip) + len(clips) // 2) % len(clips)]
    rests = [candidate for candidate in candidates if not candidate.good]
    return max(rests, key=lambda rest: rest.frames, default=None)


def _around(sound: NDArray[np.float32], start: int) -> NDArray[np.float32]:
    """The sound of a clip from frame `start` with what is before and after it; silence beyond the ends."""
    first = (start - PAST_FRAMES) * SAMPLES_PER_FRAME
    whole = np.zeros((PAST_FRAMES + FRAMES) * SAMPLES_PER_FRAME + SAMPLES_AFTER, np.float32)
    part = sound[max(first, 0) : first + len(whole)]
    whole[max(-first, 0) :][: len(part)] = part
    return whole


def _sharpness(frame: Image, box: NDArray[np.float64]) -> float:
    """Variance of the Laplacian of the face, resized to 128 x 128 pixels."""
    x0, y0, x1, y1 = (int(v) for v in box)
    face = frame[max(0, y0) : y1, max(0, x0) : x1]
    if not face.size:
        return 0.0
    small = cv2.resize(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), (128, 128), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(small, cv2.CV_32F).var())


def other_faces(detector: FaceDetector, frame: Image, box: NDArray[np.float64]) -> float:
    """Area of the largest face elsewhere over that of the face in `box`."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    faces = detector.detect(frame)
    own = max((face.area for face in faces if _holds(face.box, x, y)), default=float(np.prod(box[2:] - box[:2])))
    return max((face.area for face in faces if not _holds(face.box, x, y)), default=0.0) / own


def _holds(box: NDArray[np.float32], x: float, y: float) -> bool:
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def _thumbnail(frame: Image) -> Image:
    height = max(1, round(96 * frame.shape[0] / frame.shape[1]))
    return np.asarray(cv2.resize(frame, (96, height), interpolation=cv2.INTER_AREA), np.uint8)


def _small(clip: _Candidate) -> str:
    return encoded_thumbnail(picture(clip.picture))


def encoded_thumbnail(picture: Image) -> str:
    """A thumbnail as JPEG, base64."""
    data = cv2.imencode(".jpg", cv2.cvtColor(_thumbnail(picture), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return base64.b64encode(data.tobytes()).decode()


def plain(stretch: Stretch) -> dict[str, Any]:
    """`stretch` for JSON."""
    return {
        "start": stretch.start,
        "frames": stretch.frames,
        "dropped": stretch.dropped,
        "measured": stretch.measured,
        "thumbnail": stretch.thumbnail,
    }
