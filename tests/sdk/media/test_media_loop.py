from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.errors import ConfigError, NoVideoError, OutputError
from lipstream.media import FrameLoop, Picture, PictureFormat, VideoReader, ping_pong
from lipstream.media.loop import first_reused
from lipstream.media.spool import FrameSpool
from media_clips import number_of, stamped, write_clip
from numpy.typing import NDArray


def walked(n: int, steps: int) -> list[int]:
    """Indices 0..n-1 forwards and backwards."""
    place, direction, visited = 0, 1, []
    for _ in range(steps):
        visited.append(place)
        if not 0 <= place + direction < n:
            direction = -direction
        place += direction if n > 1 else 0
    return visited


@given(st.integers(1, 40), st.integers(0, 200))
def test_ping_pong_reverses_at_the_ends(n: int, steps: int) -> None:
    assert [ping_pong(i, n) for i in range(steps)] == walked(n, steps)


@given(st.integers(1, 30), st.integers(1, 120))
def test_first_reused_is_the_lowest_index_seen_twice(n: int, length: int) -> None:
    assert first_reused(n, length) == min(walked(n, length)[n:], default=n)


def test_ping_pong_needs_frames() -> None:
    for i, n in ((0, 0), (-1, 3)):
        with pytest.raises(ValueError, match="frames"):
            ping_pong(i, n)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@given(st.integers(1, 9), st.integers(0, 40), st.sampled_from(["generator", "list", "array"]))
@settings(deadline=None)
def test_every_kind_of_source_gives_the_same_sequence(n: int, steps: int, kind: str) -> None:
    frames = [stamped(k) for k in range(n)]
    source = {"generator": (f for f in frames), "list": frames, "array": np.stack(frames)}[kind]
    with FrameLoop(source) as loop:
        got = list(islice(loop, steps))
    assert [index for index, _ in got] == [number_of(picture.rgb) for _, picture in got] == walked(n, steps)


@pytest.mark.parametrize("length", [None, 5, 20, 21, 30, 39, 100])
def test_a_video_loops_to_the_length_wanted(tmp_path: Path, length: int | None) -> None:
    path = write_clip(tmp_path / "clip.mkv", [stamped(k) for k in range(20)], codec="ffv1", pixels="bgr0")
    got = list(islice(FrameLoop(VideoReader(path), length, spool_dir=tmp_path), 70 if length is None else 1000))
    expected = walked(20, length or 70)
    assert [i for i, _ in got] == [number_of(picture.rgb) for _, picture in got] == expected


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_a_source_that_is_long_enough_writes_no_file(tmp_path: Path) -> None:
    reader = VideoReader(write_clip(tmp_path / "clip.mp4", [stamped(k) for k in range(60)]))
    loop = FrameLoop(reader, 60, spool_dir=tmp_path / "missing")
    assert len(list(loop)) == 60
    with pytest.raises(OutputError, match="missing"):
        list(FrameLoop(reader, 61, spool_dir=tmp_path / "missing"))


class Overstated(VideoReader):
    """A reader whose header promises more frames than there are."""

    def __init__(self, path: Path, frames: int) -> None:
        super().__init__(path)
        object.__setattr__(self.info, "duration", frames / 25)


@pytest.mark.parametrize("promised", [40, 400])
def test_a_header_that_overstates_the_length(tmp_path: Path, promised: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", [stamped(k) for k in range(30)])
    got = list(FrameLoop(Overstated(path, promised), 80))
    assert [i for i, _ in got] == [number_of(picture.rgb) for _, picture in got] == walked(30, 80)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_the_temporary_file_is_deleted_with_the_loop(tmp_path: Path) -> None:
    def frames() -> Iterator[NDArray[np.uint8]]:
        yield from (stamped(k) for k in range(4))

    before = open_files()
    loop = FrameLoop(frames(), spool_dir=tmp_path)
    list(islice(loop, 10))
    assert open_files() == before + 1
    assert loop.count == 4
    loop.close()
    loop.close()
    assert open_files() == before
    assert list(loop) == []
    other = FrameLoop(frames(), spool_dir=tmp_path)
    list(islice(other, 10))
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
    assert open_files() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pixels", ["gbrp", "yuv420p", "yuva444p10le", "gray12le"])
def test_spool_returns_the_appended_pictures(pixels: str) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (7, 5, 3, 3), dtype=np.uint8)
    pictures = [Picture.of(array).converted(PictureFormat(pixels, 3, 5)) for array in arrays]
    spool = FrameSpool()
    for picture in pictures:
        spool.append(picture)
    for index in rng.permutation(7):
        found = spool.read(int(index))
        assert found.format == pictures[index].format
        for plane, expected in zip(found.planes, pictures[index].planes, strict=True):
            np.testing.assert_array_equal(plane, expected)
    with pytest.raises(IndexError):
        spool.read(7)
    with pytest.raises(ValueError, match="3x4"):
        spool.append(Picture.of(arrays[0, :4]))


def test_bad_sources() -> None:
    for empty in ([], iter([]), np.zeros((0, 4, 4, 3), np.uint8)):
        with pytest.raises(NoVideoError):
            next(FrameLoop(empty))
    with pytest.raises(ConfigError, match="float32"):
        next(FrameLoop([np.zeros((4, 4, 3), np.float32)]))  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"frame 1 is 4x5 gbrp"):
        list(islice(FrameLoop(iter([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)])), 2))
