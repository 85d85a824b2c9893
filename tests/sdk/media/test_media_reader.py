from __future__ import annotations

import gc
import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.errors import MediaOpenError, MediaTruncatedError, NoVideoError
from lipstream.media import VideoReader
from lipstream.media.reader import retime
from media_clips import centres, cut, encoded, noise_frames, number_of, patches, stamped, write_clip, write_sound


def shown(starts: list[Fraction], end: Fraction) -> list[int]:
    """Index of the source frame shown at each multiple of 1/25 s, by the definition."""
    count = max(1, int(end * 25 + Fraction(1, 2)))
    return [max(k for k, start in enumerate(starts) if start <= Fraction(i, 25)) for i in range(count)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("rate", [24, 25, Fraction(30_000, 1001), 30, 50])
def test_any_constant_rate_keeps_its_speed(tmp_path: Path, rate: int | Fraction, suffix: str) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", [stamped(k) for k in range(61)], rate=rate)
    reader = VideoReader(path)
    ticks = 1000 if suffix == ".mkv" else 90_000  # Matroska keeps time in milliseconds
    starts = [Fraction(round(k / Fraction(rate) * ticks), ticks) for k in range(61)]
    assert [number_of(f) for f in reader] == shown(starts, 61 / Fraction(rate))
    assert reader.info.fps is not None
    assert float(reader.info.fps) == pytest.approx(float(rate), rel=1e-3)
    assert reader.info.duration == pytest.approx(float(61 / Fraction(rate)), abs=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_rate(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(1)
    steps = [Fraction(int(ms), 1000) for ms in rng.choice([7, 16, 33, 34, 100, 400], 40)]
    starts = [Fraction(0), *itertools.accumulate(steps)]
    path = write_clip(tmp_path / f"vfr{suffix}", [stamped(k) for k in range(41)], times=starts, clock=Fraction(1, 1000))
    numbers = [number_of(f) for f in VideoReader(path)]
    longest = starts[-1] + Fraction(2, 5)  # the duration of the last frame is estimated by the container
    assert numbers == shown(starts, longest)[: len(numbers)]
    assert len(numbers) >= len(shown(starts, starts[-1]))


@given(
    st.lists(st.fractions(0, Fraction(1, 5), max_denominator=90_000), min_size=1, max_size=30),
    st.sampled_from([25, 24, 50]),
)
@settings(max_examples=150, deadline=None)
def test_retime_is_sample_and_hold(durations: list[Fraction], fps: int) -> None:
    starts = [Fraction(0), *itertools.accumulate(durations)][:-1]
    end = starts[-1] + durations[-1]
    got = list(retime(((s, d, k) for k, (s, d) in enumerate(zip(starts, durations, strict=True))), fps))
    count = max(1, int(end * fps + Fraction(1, 2)))
    assert got == [max(k for k, s in enumerate(starts) if s * fps <= i) for i in range(count)]


def test_retime_yields_before_its_source_ends() -> None:
    endless = ((Fraction(k, 30), Fraction(1, 30), k) for k in itertools.count())
    assert next(itertools.islice(retime(endless), 1000, None)) == 1200


@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".mkv"])
def test_first_frame_is_shown_at_zero_wherever_its_clock_starts(tmp_path: Path, suffix: str) -> None:
    starts = [Fraction(3, 2) + Fraction(k, 25) for k in range(30)]
    form = "mpegts" if suffix == ".ts" else None
    path = write_clip(tmp_path / f"late{suffix}", [stamped(k) for k in range(30)], times=starts, form=form)
    reader = VideoReader(path)
    assert reader.info.start_time == 0  # the file has no earlier stream
    assert [number_of(f) for f in reader] == list(range(30))


def test_missing_time_stamps_continue_at_the_frame_rate(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "raw.h264", [stamped(k) for k in range(40)])
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).pts is None
    assert [number_of(f) for f in VideoReader(path)] == list(range(40))


def test_a_clock_reset_in_a_transport_stream_is_bridged(tmp_path: Path) -> None:
    parts = [
        write_clip(tmp_path / f"{j}.ts", [stamped(25 * j + k) for k in range(25)], form="mpegts") for j in range(2)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(p.read_bytes() for p in parts))
    numbers = [number_of(f) for f in VideoReader(joined)]
    assert sorted(set(numbers)) == list(range(50))
    assert 50 <= len(numbers) <= 52


@pytest.mark.parametrize(
    ("degrees", "mirror", "expected"),
    [
        (0, False, lambda im: im),
        (90, False, lambda im: np.rot90(im, 1)),  # FFmpeg's angle is counterclockwise, and so is numpy's
        (180, False, lambda im: np.rot90(im, 2)),
        (-90, False, lambda im: np.rot90(im, -1)),
        (0, True, lambda im: im[:, ::-1]),
    ],
)
def test_rotation_and_mirroring_are_applied(tmp_path: Path, degrees: int, mirror: bool, expected: object) -> None:
    image = patches(rows=2, columns=4, cell=16)
    path = write_clip(
        tmp_path / "turned.mp4", [image] * 3, pixels="yuv444p", rotate=degrees, mirror=mirror, options={"crf": "1"}
    )
    upright = expected(image)  # type: ignore[operator]
    reader = VideoReader(path)
    frame = next(iter(reader))
    assert (reader.info.height, reader.info.width) == upright.shape[:2] == frame.shape[:2]
    assert np.abs(centres(frame) - centres(upright)).max() <= 16


def test_pixel_shape_turns_with_the_picture(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    assert VideoReader(tmp_path / "wide.mp4").info.sample_aspect_ratio == Fraction(3, 4)


@pytest.mark.parametrize("size", [(33, 17), (1, 1), (15, 64)])
def test_odd_sizes_are_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    frames = noise_frames(3, width, height)
    path = write_clip(tmp_path / "odd.mkv", frames, codec="ffv1", pixels="bgr0")
    for got, frame in zip(VideoReader(path), frames, strict=True):
        np.testing.assert_array_equal(got, frame)


# Kr, Kb of ITU-R BT.601, BT.709, BT.2020, and the H.273 number of each matrix.
MATRICES = {601: (0.299, 0.114, 6), 709: (0.2126, 0.0722, 1), 2020: (0.2627, 0.0593, 9)}


def planes(rgb: np.ndarray, standard: int, full: bool, bits: int = 8) -> np.ndarray:
    """Y'CbCr by the formulas of the recommendations, [3, H, W]."""
    kr, kb, _ = MATRICES[standard]
    r, g, b = np.moveaxis(rgb / 255.0, -1, 0)
    y = kr * r + (1 - kr - kb) * g + kb * b
    chroma = [(b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))]
    scale = 2 ** (bits - 8)
    top = 2**bits - 1
    if full:
        parts = [y * top, *(c * top + 128 * scale for c in chroma)]
    else:
        parts = [(16 + 219 * y) * scale, *((128 + 224 * c) * scale for c in chroma)]
    return np.clip(np.round(parts), 0, top)


def yuv_frame(rgb: np.ndarray, standard: int, full: bool, tagged: bool = True) -> av.VideoFrame:
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], "yuv444p")
    for plane, values in zip(frame.planes, planes(rgb, standard, full).astype(np.uint8), strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = values
        plane.update(padded)
    frame.colorspace = MATRICES[standard][2] if tagged else 2
    frame.color_range = (2 if full else 1) if tagged else 0
    return frame


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("standard", MATRICES)
def test_tagged_colour(tmp_path: Path, standard: int, full: bool) -> None:
    rgb = patches()
    path = write_clip(tmp_path / "tagged.mkv", [yuv_frame(rgb, standard, full)], codec="ffv1", pixels="yuv444p")
    reader = VideoReader(path)
    assert (reader.info.colour.matrix, reader.info.colour.full_range) == (MATRICES[standard][2], full)
    assert np.abs(next(iter(reader)).astype(int) - rgb).max() <= 2


@pytest.mark.parametrize(("cell", "standard"), [(16, 601), (160, 709)])
def test_untagged_colour_is_guessed_by_size(tmp_path: Path, cell: int, standard: int) -> None:
    rgb = patches(cell=cell)
    frame = yuv_frame(rgb, standard, full=False, tagged=False)
    path = write_clip(tmp_path / "untagged.mkv", [frame], codec="ffv1", pixels="yuv444p")
    assert np.abs(next(iter(VideoReader(path))).astype(int) - rgb).max() <= 2


def test_ten_bit(tmp_path: Path) -> None:
    rgb = patches()
    luma, cb, cr = planes(rgb, 709, full=False, bits=10).astype(np.uint16)
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], "yuv422p10le")
    for plane, values in zip(frame.planes, (luma, cb[:, ::2], cr[:, ::2]), strict=True):
        padded = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        padded[:, : plane.width] = values
        plane.update(padded)
    frame.colorspace, frame.color_range = 1, 1
    path = write_clip(tmp_path / "deep.mkv", [frame], codec="ffv1", pixels="yuv422p10le")
    assert np.abs(centres(next(iter(VideoReader(path)))) - centres(rgb)).max() <= 1


@pytest.mark.parametrize("name", ["face.png", "face.jpg", "face%03d.png", "a:b.png"])
def test_an_image_is_one_frame(tmp_path: Path, name: str) -> None:
    rgb = patches()
    path = tmp_path / name
    av.VideoFrame.from_ndarray(rgb, format="rgb24").save(tmp_path / f"plain{path.suffix}")
    os.rename(tmp_path / f"plain{path.suffix}", path)
    (frame,) = VideoReader(path)
    assert np.abs(centres(frame) - centres(rgb)).max() <= (0 if path.suffix == ".png" else 12)


def test_iterating_twice_gives_the_same_and_frames_are_the_callers_own(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slides.mkv", [stamped(k) for k in (5, 9)], rate=1, codec="ffv1", pixels="bgr0")
    reader = VideoReader(path)
    first = list(reader)
    assert [number_of(f) for f in first] == [5] * 25 + [9] * 25
    first[0][:] = 0
    assert number_of(first[1]) == 5
    assert [number_of(f) for f in reader] == [5] * 25 + [9] * 25


def test_the_largest_of_several_streams_is_read(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for scale in (1, 2):
            stream = container.add_stream("ffv1", 25)
            stream.width, stream.height, stream.pix_fmt = 80 * scale, 48 * scale, "bgr0"
            streams.append(stream)
        for scale, stream in enumerate(streams, 1):
            image = np.full((48 * scale, 80 * scale, 3), 50 * scale, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(stream.encode(None))
    reader = VideoReader(path)
    assert (reader.info.width, reader.info.height) == (160, 96)
    assert next(iter(reader)).mean() == 100


def test_a_size_that_changes_midway_is_fitted_into_the_first(tmp_path: Path) -> None:
    parts = [
        write_clip(tmp_path / f"{w}.h264", [np.full((48, w, 3), grey, np.uint8)] * 10)
        for w, grey in ((80, 60), (96, 180))
    ]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(p.read_bytes() for p in parts))
    reader = VideoReader(joined)
    frames = list(reader)
    assert {f.shape for f in frames} == {(48, 80, 3)}
    assert abs(frames[-1][4:44].mean() - 180) < 3  # 80 x 40, as 96 x 48
    assert frames[-1][[0, 1, 46, 47]].max() < 3
    assert "96x48" in reader.defects[0]


def test_not_media(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video at all\n" * 100)
    notes = tmp_path / "notes.txt"
    notes.write_text("FFmpeg would draw this\n" * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path in (text, notes, empty, tmp_path, tmp_path / "missing.mp4", Path(os.devnull)):
        with pytest.raises(MediaOpenError, match=path.name):
            VideoReader(path)


def test_a_playlist_cannot_reach_the_network(tmp_path: Path) -> None:
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises((MediaOpenError, NoVideoError)):
        VideoReader(playlist)


def test_no_video(tmp_path: Path) -> None:
    tone = np.zeros((4800, 1), np.float32)
    with pytest.raises(NoVideoError, match="no video stream"):
        VideoReader(write_sound(tmp_path / "a.wav", tone, 48_000, "pcm_s16le"))
    song = tmp_path / "song.m4a"
    with av.open(str(song), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        cover = container.add_stream("mjpeg", 1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8)).reformat(format="yuvj420p")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        container.mux(encoded(sound, tone, 48_000))
    with pytest.raises(NoVideoError, match="cover art"):
        VideoReader(song)


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("name", ["whole.mp4", "whole.mkv"])
def test_a_truncated_file_yields_its_frames_and_then_raises(
    tmp_path: Path, name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipstream.media.threads._limit", threads)
    options = {"movflags": "+faststart"} if name.endswith("mp4") else {}
    path = write_clip(tmp_path / name, noise_frames(50), options=options)
    assert len(list(VideoReader(path))) == 50
    frames = iter(VideoReader(cut(path, 0.6)))
    taken = list(itertools.islice(frames, 20))
    assert len(taken) == 20
    with pytest.raises(MediaTruncatedError, match=r"ends at 1\.\d+ s, its header says 2\.00 s"):
        list(frames)


def test_a_file_truncated_before_its_first_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "whole.mp4", noise_frames(50), options={"movflags": "+faststart"})
    header = path.read_bytes().index(b"mdat") + 8
    short = tmp_path / "header.mp4"
    short.write_bytes(path.read_bytes()[:header])
    with pytest.raises((MediaTruncatedError, NoVideoError)):
        VideoReader(short)
    short.write_bytes(path.read_bytes()[: header - 200])
    with pytest.raises(MediaOpenError):
        VideoReader(short)


def test_damage_between_good_frames_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "whole.mov", noise_frames(20), codec="png", pixels="rgb24")
    data = bytearray(path.read_bytes())
    middle = data.index(b"\x89PNG", len(data) // 2)
    data[middle : middle + 16] = bytes(16)
    path.write_bytes(data)
    with pytest.raises(MediaTruncatedError, match="damaged"):
        list(VideoReader(path))


def test_sound_longer_than_the_video_is_not_an_error(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        path = write_clip(
            tmp_path / f"long{suffix}", [stamped(k) for k in range(25)], audio=np.zeros((48_000 * 4, 1), np.float32)
        )
        assert len(list(VideoReader(path))) == 25


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", [stamped(k) for k in range(200)])
    frames = iter(VideoReader(path))
    next(frames)
    gc.collect()
    gc.disable()  # a frame that only the cycle collector could free stays visible
    try:
        assert sum(1 for _ in itertools.islice(frames, 150)) == 150
        assert sum(isinstance(o, av.VideoFrame) for o in gc.get_objects()) < 20
    finally:
        gc.enable()
