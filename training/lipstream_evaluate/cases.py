"""Pairs results with references and audio, and aligns their frames.

Other systems may change frame rate and size and drop the first frames. So all videos are read at 25 frames a second,
results are resized to their reference, and the shift between the two is measured on the pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from lipstream.errors import ConfigError
from lipstream.media import VideoReader
from numpy.typing import NDArray

from .media import SOUNDS, VIDEOS

Image = NDArray[np.uint8]

_SHIFT = 12  # frames by which a result may be early or late against its reference
_THUMBNAIL = 32
_ASPECT = 0.02  # relative difference in the ratio of width to height up to which pictures are compared


@dataclass(frozen=True)
class Case:
    """One clip of one system. `audio` may be the result itself."""

    system: str
    name: str
    result: Path
    reference: Path
    audio: Path


def find_cases(systems: Mapping[str, Path], references: Path, audio: Path | None) -> tuple[list[Case], list[str]]:
    """All clips to evaluate, and a message for each file without a partner.

    Args:
        systems: name -> a video, or a folder of videos. references: the video, or a folder. audio: the speech, a file
            or a folder; None for the sound of each result.

    In folders a result belongs to the reference of the same name, or else to the one with the longest name that its
    name contains (`may_0001` of `may_0001_out.mp4`); sounds likewise.

    Raises:
        ConfigError: a path does not exist, or no result has a reference.
    """
    known = _files(references, VIDEOS)
    sounds = _files(audio, (*SOUNDS, *VIDEOS)) if audio else []
    cases, missing = [], []
    for system, path in systems.items():
        results = _files(path, VIDEOS)
        alone = len(known) == 1 and len(results) == 1
        taken = set()
        for result in results:
            reference = known[0] if alone else _partner(result, known)
            if reference is None:
                missing.append(f"{system}: {result.name} has no reference in {references}")
                continue
            sound = result if not audio else sounds[0] if len(sounds) == 1 else _partner(reference, sounds)
            if sound is None:
                missing.append(f"{system}: {result.name} has no sound in {audio}")
                continue
            taken.add(reference)
            cases.append(Case(system, reference.stem, result, reference, sound))
        missing += [f"{system}: no result for {path.name}" for path in known if path not in taken]
    if not cases:
        raise ConfigError(
            "no result has a reference\n  " + "\n  ".join(missing[:10]),
            expected="files named alike, e.g. references/may.mp4 and results/may.mp4 or may_out.mp4",
        )
    return cases, missing


def _files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"no such file or folder: {path}")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith("."))
    if not found:
        raise ConfigError(f"{path} holds no media files", expected=f"files ending in {', '.join(suffixes)}")
    return found


def _partner(file: Path, among: Iterable[Path]) -> Path | None:
    names = {other.stem: other for other in among}
    within = [name for name in names if name == file.stem or name in file.stem]
    return names[max(within, key=len)] if within else None


def thumbnails(frames: Iterable[Image], keep: list[NDArray[np.float32]]) -> Iterator[Image]:
    """Yield the frames unchanged, and append a small grey picture of each to `keep`."""
    for frame in frames:
        small = cv2.resize(frame, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
        keep.append(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32))
        yield frame


def shift_between(results: list[NDArray[np.float32]], references: list[NDArray[np.float32]]) -> int:
    """Frames by which the result's picture is late: its frame ``i + shift`` shows the reference's frame i.

    The shift with the least mean difference of the thumbnails; a shift other than 0 must be better by a tenth.
    """
    a, b = np.stack(results), np.stack(references)

    def difference(shift: int) -> float:
        n = min(len(a) - max(shift, 0), len(b) + min(shift, 0))
        if n < min(len(a), len(b)) // 2 or n < 1:
            return float("inf")
        return float(np.abs(a[max(shift, 0) :][:n] - b[max(-shift, 0) :][:n]).mean())

    best = min(range(-_SHIFT, _SHIFT + 1), key=lambda shift: (difference(shift), abs(shift)))
    return best if difference(best) < 0.9 * difference(0) else 0


def pairs(case: Case, shift: int) -> Iterator[tuple[Image, int, Image | None]]:
    """For each frame of the result: the frame, the number of the reference's frame of the same moment, and that frame.

    None where the reference has no such frame.
    """
    references = enumerate(VideoReader(case.reference))
    at, reference = -1, None
    for i, result in enumerate(VideoReader(case.result)):
        while at < i - shift:
            at, reference = next(references, (i - shift, None))
        yield result, i - shift, reference if at == i - shift else None


def same_shape(result: Image, reference: Image) -> bool:
    """Whether both have about the same ratio of width to height."""
    a, b = result.shape[1] / result.shape[0], reference.shape[1] / reference.shape[0]
    return bool(abs(a / b - 1) <= _ASPECT)


def to_size(picture: Image, like: Image) -> Image:
    """`picture` in the size of `like`."""
    if picture.shape == like.shape:
        return picture
    smaller = picture.shape[0] > like.shape[0]
    size = like.shape[1], like.shape[0]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC), np.uint8)
