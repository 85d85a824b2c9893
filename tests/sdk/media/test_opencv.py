"""Pictures in the upstream system's R'G'B', compared with `cv2.VideoCapture` itself."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from lipstream.media import VideoReader, VideoWriter
from lipstream.media.sandbox import SandboxedReader
from media_clips import write_clip
from numpy.typing import NDArray

BT709, BT601, UNSPECIFIED = 1, 6, 2
LIMITED, FULL = 1, 2


def clip(path: Path, pixels: str, codec: str, width: int, height: int, matrix: int, range_: int = LIMITED) -> Path:
    """Three frames whose samples do not depend on the tags."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(3):
        coarse = rng.random((height // 6 + 1, width // 6 + 1, 3)).astype(np.float32)
        image = np.asarray(255 * np.clip(cv2.resize(coarse, (width, height)), 0, 1), np.uint8)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
        frame.colorspace, frame.color_range = matrix, range_
        frames.append(frame)
    return write_clip(path, frames, codec=codec, pixels=pixels)


def captured(path: Path) -> list[NDArray[np.uint8]]:
    """RGB."""
    capture, found = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (read := capture.read())[0]:
        found.append(read[1][..., ::-1])
    return found


def same(found: list[NDArray[np.uint8]], expected: list[NDArray[np.uint8]]) -> None:
    assert len(found) == len(expected) == 3
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


@pytest.mark.parametrize("size", [(96, 64), (322, 182), (97, 65), (98, 65), (97, 64)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_to_the_bit_as_opencv(tmp_path: Path, size: tuple[int, int], pixels: str) -> None:
    for matrix in (BT601, UNSPECIFIED):
        path = clip(tmp_path / f"{matrix}.mkv", pixels, "ffv1", *size, matrix)
        same(list(VideoReader(path, opencv=True)), captured(path))


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p"])
def test_to_the_bit_as_opencv_of_h264(tmp_path: Path, pixels: str) -> None:
    """Whose decoder states the full range by the name of the pixel format."""
    range_ = FULL if pixels.startswith("yuvj") else LIMITED
    path = clip(tmp_path / "clip.mp4", pixels, "libx264", 322, 182, BT601, range_)
    same(list(VideoReader(path, opencv=True)), captured(path))


def test_tags_do_not_matter(tmp_path: Path) -> None:
    """As up to OpenCV 4.12; later ones read the first three differently from the last one, by 6 levels in the mean."""
    tags = [(BT709, LIMITED), (BT709, FULL), (BT601, FULL), (BT601, LIMITED)]
    paths = [clip(tmp_path / f"{m}{r}.mkv", "yuv420p", "ffv1", 98, 65, m, r) for m, r in tags]
    for path in paths[:3]:
        same(list(VideoReader(path, opencv=True)), captured(paths[3]))


def test_pictures_are_turned_as_by_opencv(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    path = write_clip(tmp_path / "turned.mp4", [*images], rotate=90)
    found = list(VideoReader(path, opencv=True))
    assert found[0].shape == (96, 64, 3)
    same(found, captured(path))


def test_the_default_converts_by_the_tags(tmp_path: Path) -> None:
    found = [
        next(iter(VideoReader(clip(tmp_path / f"{matrix}.mkv", "yuv420p", "ffv1", 96, 64, matrix))))
        for matrix in (BT709, BT601)
    ]
    assert np.abs(found[0].astype(int) - found[1]).mean() > 1


def test_a_sandboxed_file_is_read_alike(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mkv", "yuv420p", "ffv1", 96, 64, BT709)
    with closing(SandboxedReader(path, opencv=True)) as reader:
        same(list(reader), list(VideoReader(path, opencv=True)))


def test_what_is_written_is_read_alike(tmp_path: Path) -> None:
    """With the matrix that OpenCV assumes, whatever the source's is."""
    reader = VideoReader(clip(tmp_path / "clip.mkv", "yuv420p", "ffv1", 96, 64, BT709), opencv=True)
    colour = np.full((64, 96, 3), (30, 200, 60), np.uint8)  # by BT.709's matrix, read by BT.601's, off by 26 levels
    with VideoWriter(tmp_path / "out.mp4", 96, 64, format=reader.info.format) as writer:
        writer.write(colour)
    written = VideoReader(tmp_path / "out.mp4")
    assert written.info.colour.matrix == BT601
    for back in (list(written), list(VideoReader(tmp_path / "out.mp4", opencv=True)), captured(tmp_path / "out.mp4")):
        assert np.abs(back[0].astype(int) - colour).max() <= 3


def test_rgb_stays_as_it_is(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (33, 47, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    np.testing.assert_array_equal(next(iter(VideoReader(tmp_path / "a.png", opencv=True))), image)
