"""The picture of a result, read again and compared with the frames it shows."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from lipstream.media import ping_pong
from lipstream.media.contact_sheet import contact_sheet
from numpy.typing import NDArray
from voice_and_video import voice, write_video

Video = NDArray[np.uint8]


def read(png: bytes) -> Video:
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def flat(count: int, width: int = 100, height: int = 60, channel: int = 0) -> list[Video]:
    """Flat frames whose number is their brightness in one channel."""
    frames = [np.zeros((height, width, 3), np.uint8) for _ in range(count)]
    for i, frame in enumerate(frames):
        frame[..., channel] = 5 * i + 5
    return frames


@pytest.mark.parametrize(("source", "result"), [(10, 16), (31, 8), (1, 1), (4, 50), (50, 3)])
def test_eight_moments_source_above_result(tmp_path: Path, source: int, result: int) -> None:
    a = write_video(tmp_path / "a.mkv", flat(source), lossless=True)
    sound = voice(result / 25)
    b = write_video(tmp_path / "b.mkv", flat(result, channel=1), sound, lossless=True)
    sheet = read(contact_sheet(a, b))
    assert sheet.shape == (2 * 120 + 22 + 90, 1600, 3)
    shown = [int(sheet[180, 200 * i + 100, 1]) // 5 - 1 for i in range(8)]
    assert shown == sorted(shown)
    assert shown[0] <= result / 16 + 0.5
    assert shown[-1] >= result - 1 - (result / 16 + 0.5)
    for i, moment in enumerate(shown):
        assert (sheet[:120, 200 * i : 200 * (i + 1)] == (5 * ping_pong(moment, source) + 5, 0, 0)).all()
        assert (sheet[120:240, 200 * i : 200 * (i + 1)] == (0, 5 * moment + 5, 0)).all()


def test_the_waveform_shows_where_it_is_loud(tmp_path: Path) -> None:
    sound = np.zeros(16_000, np.float32)
    sound[8000:12_000] = np.sin(np.arange(4000))
    video = write_video(tmp_path / "a.mkv", flat(25), sound, lossless=True)
    wave = read(contact_sheet(video, video))[-90:]
    inked = (wave < 200).any(axis=2).sum(axis=0)
    assert inked[900:1100].min() > 40
    assert inked[100:700].max() < 10
    assert inked[1300:1550].max() < 10


def test_another_size_of_the_result(tmp_path: Path) -> None:
    a = write_video(tmp_path / "a.mkv", flat(5, 101, 61), lossless=True)
    b = write_video(tmp_path / "b.mp4", flat(5, 101, 61), voice(0.2))  # padded to 102 x 62
    assert read(contact_sheet(a, b)).shape[1] == 1600
