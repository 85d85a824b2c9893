from __future__ import annotations

import gc
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.atomic import Partial
from lipstream.errors import AudioFormatError, ConfigError, OutputError
from lipstream.media import (
    AudioReader,
    Colour,
    Picture,
    PictureFormat,
    VideoReader,
    VideoWriter,
    ensure_distinct,
    read_audio,
)
from media_clips import centres, number_of, patches, stamped, write_clip
from test_media_audio import chirp, lag

BLACK = np.zeros((48, 64, 3), np.uint8)


def atoms(path: Path) -> list[bytes]:
    """Names of an MP4 file's top-level boxes, in order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name)
        at += size
    return names


def track_ends(path: Path) -> list[float]:
    """End in seconds of each track, by its packets."""
    with av.open(str(path)) as container:
        ends = [0.0] * len(container.streams)
        for packet in container.demux():
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                ends[packet.stream_index] = max(ends[packet.stream_index], float(end))
    return ends


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv"])
@pytest.mark.parametrize("audio_rate", [16_000, 44_100, 48_000])
def test_frames_and_sound_come_back_in_place(tmp_path: Path, suffix: str, audio_rate: int) -> None:
    path = tmp_path / f"out{suffix}"
    signal = chirp(audio_rate * 2, audio_rate, 2)
    with VideoWriter(path, 80, 48, audio_rate=audio_rate, audio_channels=2, preset="ultrafast") as writer:
        for k in range(50):
            writer.write(stamped(k))
            writer.write_audio(signal[k * audio_rate // 25 : (k + 1) * audio_rate // 25])
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert [number_of(f) for f in VideoReader(path)] == list(range(50))
    samples, rate = read_audio(path)
    assert rate == audio_rate
    assert all(lag(signal[:, c], samples[:, c]) == 0 for c in (0, 1))
    assert 0 <= len(samples) - len(signal) < 1024
    picture, sound = track_ends(path)
    assert picture == pytest.approx(2.0, abs=1e-3)
    if suffix == ".mkv":
        assert 0 <= sound - picture < 1024 / audio_rate
    else:
        assert abs(sound - picture) < 1e-3
        assert len(samples) == len(signal)
        assert atoms(path).index(b"moov") < atoms(path).index(b"mdat")
    assert VideoReader(path).info.start_time == AudioReader(path).info.start_time == 0


@given(
    frames=st.integers(1, 30),
    samples=st.integers(0, 40_000),
    first=st.sampled_from(["video", "audio", "mixed"]),
    rate=st.sampled_from([25, 24, Fraction(30_000, 1001)]),
)
@settings(max_examples=20, deadline=None)
def test_both_tracks_end_together_whatever_is_written(
    tmp_path_factory: pytest.TempPathFactory, frames: int, samples: int, first: str, rate: int | Fraction
) -> None:
    path = tmp_path_factory.mktemp("out") / "out.mp4"
    sound = chirp(samples, 24_000)
    with VideoWriter(path, 64, 48, rate=rate, audio_rate=24_000, preset="ultrafast") as writer:
        if first == "audio":
            writer.write_audio(sound)
        for k in range(frames):
            writer.write(BLACK)
            if first == "mixed":
                writer.write_audio(sound[samples * k // frames : samples * (k + 1) // frames])
        if first == "video":
            writer.write_audio(sound)
    length = round(frames / Fraction(rate) * 24_000)
    got, _ = read_audio(path)
    assert len(got) == length
    picture, end = track_ends(path)
    assert picture == pytest.approx(float(frames / Fraction(rate)), abs=1e-3)
    assert abs(picture - end) < 1e-3
    kept = min(samples, length)
    if kept > 4_800:
        assert lag(sound[:kept, 0], got[:, 0]) == 0
    assert np.abs(got[kept + 2_048 :]).max(initial=0) < 1e-3


@pytest.mark.parametrize("audio_rate", [37_800, 192_000])
def test_a_rate_that_aac_lacks_is_resampled(tmp_path: Path, audio_rate: int) -> None:
    signal = chirp(audio_rate, audio_rate)
    with VideoWriter(tmp_path / "out.mp4", 64, 48, audio_rate=audio_rate, preset="ultrafast") as writer:
        for k in range(25):
            writer.write(BLACK)
            writer.write_audio(signal[k * audio_rate // 25 : (k + 1) * audio_rate // 25])
    samples, rate = read_audio(tmp_path / "out.mp4")
    assert rate == {37_800: 44_100, 192_000: 96_000}[audio_rate]
    assert len(samples) == rate
    assert lag(chirp(rate, rate)[:, 0], samples[:, 0]) == 0


@pytest.mark.parametrize("channels", range(1, 9))
def test_channel_counts(tmp_path: Path, channels: int) -> None:
    with VideoWriter(tmp_path / "out.mp4", 64, 48, audio_rate=48_000, audio_channels=channels) as writer:
        writer.write(BLACK)
        writer.write_audio(np.zeros((1_920, channels), np.int16))
    assert read_audio(tmp_path / "out.mp4")[0].shape == (1_920, channels)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("matrix", "primaries", "transfer"), [(1, 1, 1), (6, 6, 6), (5, 5, 6), (9, 9, 16), (6, 2, 2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_colour_survives(
    tmp_path: Path, suffix: str, matrix: int, primaries: int, transfer: int, full_range: bool
) -> None:
    colour = Colour(matrix, primaries, transfer, full_range)
    path = tmp_path / f"out{suffix}"
    image = patches()
    with VideoWriter(
        path, image.shape[1], image.shape[0], crf=1, format=PictureFormat("rgb24", 1, 1, colour)
    ) as writer:
        for _ in range(3):
            writer.write(image)
    reader = VideoReader(path)
    assert reader.info.colour == colour
    for frame in reader:
        difference = centres(frame) - centres(image)
        assert np.abs(difference).max() <= 3
        assert np.abs(difference).mean() <= 1
    with av.open(str(path)) as container:  # what other programs see
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (matrix, 2 if full_range else 1)


def test_a_file_read_and_written_again_keeps_its_tags(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    with VideoWriter(
        source, 64, 48, format=PictureFormat("rgb24", 64, 48, Colour(6, 6, 6)), sample_aspect_ratio=Fraction(4, 3)
    ) as writer:
        writer.write(BLACK)
    info = VideoReader(source).info
    assert (info.colour, info.sample_aspect_ratio) == (Colour(6, 6, 6), Fraction(4, 3))


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47), (63, 47), (1, 1)])
def test_odd_sizes_gain_a_copy_of_the_edge(tmp_path: Path, width: int, height: int) -> None:
    column, row = np.arange(width) * 3, np.arange(height)[:, None] * 3
    image = np.repeat(((column + row) % 256).astype(np.uint8)[..., None], 3, 2)
    with VideoWriter(tmp_path / "out.mp4", width, height, crf=1) as writer:
        writer.write(image)
        stored = writer.stored_size
    assert stored == (width + width % 2, height + height % 2)
    (frame,) = VideoReader(tmp_path / "out.mp4")
    expected = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert np.abs(frame.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("size", [(64, 48), (33, 17)])
def test_lossless_is_bit_exact(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (8, height, width, 3), dtype=np.uint8)
    sound = rng.uniform(-1, 1, (8 * 1_764, 2)).astype(np.float32)
    path = tmp_path / "out.mkv"
    with VideoWriter(path, width, height, audio_rate=44_100, audio_channels=2, lossless=True) as writer:
        for k, frame in enumerate(frames):
            writer.write(frame)
            writer.write_audio(sound[k * 1_764 : (k + 1) * 1_764])
    np.testing.assert_array_equal(np.stack(list(VideoReader(path))), frames)
    np.testing.assert_array_equal(read_audio(path)[0], sound)


@pytest.mark.parametrize("name", ["yuv420p", "yuv420p10le", "yuv422p", "yuva420p", "gray"])
def test_lossless_keeps_the_planes_of_odd_sizes(tmp_path: Path, name: str) -> None:
    picture = Picture.of(patches()[:33, :37]).converted(PictureFormat(name, 37, 33))
    with VideoWriter(tmp_path / "out.mkv", 37, 33, format=picture.format, lossless=True) as writer:
        writer.write(picture)
    (found,) = VideoReader(tmp_path / "out.mkv").pictures()
    assert (found.width, found.height) == (37, 33)
    for plane, expected in zip(found.planes, picture.planes, strict=True):
        np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_no_new_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"an older result")
    with pytest.raises(error), VideoWriter(path, 64, 48, audio_rate=16_000) as writer:  # noqa: PT012
        for _ in range(30):
            writer.write(BLACK)
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert path.read_bytes() == b"an older result"


def test_abort_and_a_deleted_writer_leave_no_file(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", 64, 48)
    writer.write(BLACK)
    assert len(list(tmp_path.iterdir())) == 1
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="closed"):
        writer.write(BLACK)
    writer = VideoWriter(tmp_path / "out.mp4", 64, 48)
    writer.write(BLACK)
    del writer
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_close_replaces_and_may_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    writer = VideoWriter(path, 64, 48)
    writer.write(BLACK)
    writer.close()
    writer.close()
    writer.abort()
    assert len(list(VideoReader(path))) == 1
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_without_frames_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"), VideoWriter(tmp_path / "out.mp4", 64, 48):
        pass
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    for path, says in (
        (tmp_path / "missing" / "out.mp4", "mkdir -p"),
        (tmp_path / "folder.mp4", "directory"),
        (tmp_path / "file" / "out.mp4", "no such folder"),
        (tmp_path / "out.avi", "suffix '.avi'"),
        (tmp_path / "out", "suffix ''"),
    ):
        with pytest.raises(OutputError) as caught:
            VideoWriter(path, 64, 48)
        assert says in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that no user can write to")
def test_an_unwritable_folder() -> None:
    with pytest.raises(OutputError, match="cannot be written to"):
        VideoWriter("/proc/self/out.mp4", 64, 48)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = Partial(tmp_path / "out.mkv")
    partial.path.unlink()
    partial.path.symlink_to("/dev/full")
    monkeypatch.setattr("lipstream.media.writer._reserve", lambda path: partial)
    rng = np.random.default_rng(0)
    with pytest.raises(OutputError), VideoWriter(tmp_path / "out.mkv", 320, 240, lossless=True) as writer:  # noqa: PT012
        for _ in range(20):
            writer.write(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_invalid_options(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    for options in ({"crf": 52}, {"preset": "warp"}, {"lossless": True}, {"rate": 0}):
        with pytest.raises(ConfigError):
            VideoWriter(path, 64, 48, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        VideoWriter(path, 0, 48)
    for options in ({"audio_rate": 100}, {"audio_rate": 16_000, "audio_channels": 9}):
        with pytest.raises(AudioFormatError):
            VideoWriter(path, 64, 48, **options)  # type: ignore[arg-type]
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_wrong_frames_and_samples_do_not_end_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 64, 48, audio_rate=16_000) as writer:
        for wrong in (BLACK[:-1], BLACK.astype(np.float32), BLACK[..., 0], None):
            with pytest.raises(ConfigError):
                writer.write(wrong)  # type: ignore[arg-type]
        for bad in (np.zeros((9, 2), np.float32), np.full(9, np.nan)):
            with pytest.raises(AudioFormatError):
                writer.write_audio(bad)
        writer.write(BLACK[:, ::-1])
    assert len(list(VideoReader(path))) == 1
    with VideoWriter(path, 64, 48) as mute:
        mute.write(BLACK)
        with pytest.raises(ConfigError, match="audio"):
            mute.write_audio(np.zeros(9, np.float32))


def test_ensure_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_clip(tmp_path / "in.mp4", [stamped(0)])
    alias = tmp_path / "alias.mp4"
    alias.symlink_to(source)
    hard = tmp_path / "hard.mp4"
    os.link(source, hard)
    monkeypatch.chdir(tmp_path)
    for same in (source, alias, hard, Path("in.mp4"), tmp_path / "x" / ".." / "in.mp4"):
        with pytest.raises(OutputError, match="also the input"):
            ensure_distinct(same, tmp_path / "speech.wav", source)
    ensure_distinct(tmp_path / "out.mp4", source, tmp_path / "speech.wav")
