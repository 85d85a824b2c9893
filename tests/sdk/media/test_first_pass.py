"""Pictures that are encoded twice, compared with a file that is read and encoded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lipstream.errors import ConfigError
from lipstream.media import VideoReader, VideoWriter, read_audio
from media_clips import stamped
from numpy.typing import NDArray


def written(path: Path, frames: list[NDArray[np.uint8]], crf: int, first_crf: int | None = None) -> VideoReader:
    height, width = frames[0].shape[:2]
    with VideoWriter(
        path, width, height, crf=crf, first_crf=first_crf, preset="ultrafast", audio_rate=16_000
    ) as writer:
        for frame in frames:
            writer.write(frame)
            writer.write_audio(np.full(640, 0.1, np.float32))
    return VideoReader(path)


@pytest.mark.parametrize("count", [1, 3, 70])
def test_the_pictures_of_a_file_that_is_encoded_again(tmp_path: Path, count: int) -> None:
    """With the preset "ultrafast": x264's slower ones do not give equal files of equal pictures of noise."""
    frames = [stamped(k)[:, :79] for k in range(count)]  # an odd width
    rng = np.random.default_rng(0)
    for frame in frames:
        frame[24:] = rng.integers(0, 256, (24, 79, 1), np.uint8)
    first = written(tmp_path / "first.mp4", frames, 30)
    with VideoWriter(tmp_path / "second.mp4", 80, 48, crf=35, preset="ultrafast", format=first.info.format) as writer:
        for picture in first.pictures():
            writer.write(picture)
    expected = np.stack(list(VideoReader(tmp_path / "second.mp4")))
    found = np.stack(list(written(tmp_path / "both.mp4", frames, 35, 30)))
    assert found.shape == (count, 48, 80, 3)
    np.testing.assert_array_equal(found, expected)
    once = np.stack(list(written(tmp_path / "once.mp4", frames, 35)))
    assert np.abs(once.astype(int) - expected).max() > 10
    samples, rate = read_audio(tmp_path / "both.mp4")
    assert len(samples) == count * rate // 25


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", 80, 48, first_crf=13)
    writer.write(np.zeros((48, 80, 3), np.uint8))
    with pytest.raises(ConfigError, match="a frame of 64x48"), writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert not [*tmp_path.iterdir()]


def test_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lossless=True with first_crf"):
        VideoWriter(tmp_path / "out.mkv", 80, 48, first_crf=13, lossless=True)
    with pytest.raises(ConfigError, match="crf=52"):
        VideoWriter(tmp_path / "out.mkv", 80, 48, first_crf=52)
    assert not [*tmp_path.iterdir()]
