"""A picture of a result: source frames above, result frames below, the sound's waveform under them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from . import FPS, AudioReader, FrameLoop, Picture, VideoReader
from .sandbox import FILES, SandboxedReader

_INK, _PAPER, _WAVE = (40, 40, 40), 255, (150, 90, 30)


def contact_sheet(
    source: Path,
    result: Path,
    *,
    frames: int | None = None,
    columns: int = 8,
    width: int = 200,
    sandbox: bool = False,
) -> bytes:
    """A PNG of `columns` frames of `result`, evenly spaced, each above its position in the waveform.

    Args:
        source: the video that was dubbed. frames: number of frames of the result; None to count them first.
        width: of one picture, pixels. sandbox: decode `source` in a process of its own, see `sandbox`.
    """
    total = sum(1 for _ in VideoReader(result).pictures()) if frames is None else frames
    moments = [round((i + 0.5) * total / columns - 0.5) for i in range(columns)]
    results = _pick(VideoReader(result).pictures(), moments, width)
    reader = SandboxedReader(source, limits=FILES, deadline=math.inf) if sandbox else VideoReader(source)
    with closing(reader):
        sources = _pick((frame for _, frame in FrameLoop(reader, total)), moments, width)
    rows = [_row(sources), _row(results), _labels(moments, width), _waveform(result, columns * width, moments, total)]
    _, data = cv2.imencode(".png", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    return data.tobytes()


def _pick(video: Iterable[Picture], wanted: list[int], width: int) -> list[NDArray[np.uint8]]:
    found = {i: _fit(picture.rgb, width) for i, picture in enumerate(video) if i in wanted}
    return [found[i] for i in wanted]


def _fit(frame: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    height = round(frame.shape[0] * width / frame.shape[1])
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _row(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate(pictures, axis=1)


def _labels(moments: list[int], width: int) -> NDArray[np.uint8]:
    strip = np.full((22, width * len(moments), 3), _PAPER, np.uint8)
    for i, moment in enumerate(moments):
        cv2.putText(
            strip, f"{moment / FPS:.2f} s", (i * width + 6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA
        )
    return strip


def _waveform(path: Path, width: int, moments: list[int], total: int, height: int = 90) -> NDArray[np.uint8]:
    """Draw the peaks of the sound over the whole result, with a line at each frame shown."""
    samples = np.concatenate([block.mean(axis=1) for block in AudioReader(path)])
    edges = np.linspace(0, len(samples), width + 1).astype(int)
    peaks = np.array([np.abs(samples[a:b]).max(initial=0) for a, b in pairwise(edges)])
    peaks = peaks / max(peaks.max(), 1e-6) * (height / 2 - 4)
    strip = np.full((height, width, 3), _PAPER, np.uint8)
    for moment in moments:
        x = int((moment + 0.5) / total * width)
        strip[:, x] = (210, 210, 210)
    rows = np.abs(np.arange(height) - height / 2)[:, None]
    strip[rows <= np.maximum(peaks, 0.5)[None]] = _WAVE
    return strip
