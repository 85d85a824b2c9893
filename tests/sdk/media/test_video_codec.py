"""Codecs of written files: what survives, read back by FFmpeg's decoders, and what is said about the rest."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from lipstream.errors import ConfigError
from lipstream.media import Colour, Picture, PictureFormat, VideoReader, VideoWriter
from lipstream.media.av_frame import allocate
from lipstream.media.hdr import Hdr

WIDTH, HEIGHT = 96, 64
BT2100 = Colour(9, 9, 16)
DISPLAY = Hdr(
    primaries=(
        (Fraction(34000, 50000), Fraction(16000, 50000)),
        (Fraction(13250, 50000), Fraction(34500, 50000)),
        (Fraction(7500, 50000), Fraction(3000, 50000)),
        (Fraction(15635, 50000), Fraction(16450, 50000)),
    ),
    luminance=(Fraction(1, 200), Fraction(1000)),
    light=(1000, 400),
)


def ramp(name: str, colour: Colour = BT2100, i: int = 0) -> Picture:
    """A picture whose planes are gradients that use the lowest bits."""
    format = PictureFormat(name, WIDTH, HEIGHT, colour)
    frame, planes = allocate(format)
    top = 1 << format.depth
    for k, plane in enumerate(planes):
        y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]
        plane[...] = top * 3 // 8 + ((x + (k + 1) * y + i) * top // 1024)
    if format.has_alpha:
        planes[-1][:, : WIDTH // 2] = top - 1
    return Picture(frame, format)


def written(path: Path, pictures: list[Picture], **options: object) -> VideoWriter:
    format = pictures[0].format
    with VideoWriter(path, WIDTH, HEIGHT, format=format, crf=1, preset="veryfast", **options) as writer:  # type: ignore[arg-type]
        for picture in pictures:
            writer.write(picture)
    return writer


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("codec", "name", "stored"),
    [
        (None, "yuv420p", "yuv420p"),
        (None, "yuv422p", "yuv420p"),
        (None, "yuv420p10le", "yuv420p10le"),
        (None, "yuv444p12le", "yuv420p10le"),
        (None, "gbrp", "yuv420p"),
        (None, "gray", "yuv420p"),
        ("h264", "yuv420p10le", "yuv420p"),
        ("hevc", "yuv420p", "yuv420p"),
        ("av1", "yuv420p10le", "yuv420p10le"),
        ("av1", "yuv420p", "yuv420p"),
    ],
)
def test_pixel_formats_of_a_codec(tmp_path: Path, suffix: str, codec: str | None, name: str, stored: str) -> None:
    colour = Colour() if name in ("gbrp", "gray") else BT2100
    pictures = [ramp(name, colour, i) for i in range(3)]
    writer = written(tmp_path / f"out{suffix}", pictures, codec=codec)
    reader = VideoReader(tmp_path / f"out{suffix}")
    assert reader.info.format.name == stored
    assert reader.info.colour == colour
    for found, picture in zip(reader.pictures(), pictures, strict=True):
        difference = found.view(np.eye(3)[:2], WIDTH, HEIGHT).astype(int) - picture.view(np.eye(3)[:2], WIDTH, HEIGHT)
        assert np.abs(difference).mean() < 2
    depth = {"yuv420p10le": 10, "yuv444p12le": 12}.get(name, 8)
    kept = 8 if stored == "yuv420p" else 10
    assert any("bits" in loss for loss in writer.losses) == (depth > kept)


def test_ten_bits_are_ten_bits(tmp_path: Path) -> None:
    """A gradient of single 10-bit steps is not reduced to every fourth value."""
    pictures = [ramp("yuv420p10le", i=i) for i in range(3)]
    written(tmp_path / "out.mp4", pictures)
    for found, picture in zip(VideoReader(tmp_path / "out.mp4").pictures(), pictures, strict=True):
        assert np.abs(found.planes[0].astype(int) - picture.planes[0]).mean() < 1
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"  # which Apple's players ask for


def test_prores_keeps_alpha(tmp_path: Path) -> None:
    pictures = [ramp("yuva444p10le", i=i) for i in range(3)]
    writer = written(tmp_path / "out.mov", pictures)
    assert writer.losses == ()
    reader = VideoReader(tmp_path / "out.mov")
    for found, picture in zip(reader.pictures(), pictures, strict=True):
        alpha = found.planes[3] / (2**found.format.depth - 1)
        np.testing.assert_allclose(alpha, picture.planes[3] / 1023, atol=2e-3)
        luma = found.planes[0] / 2**found.format.depth
        np.testing.assert_allclose(luma, picture.planes[0] / 1024, atol=5e-3)


def test_prores_of_a_full_range_picture_keeps_its_colours(tmp_path: Path) -> None:
    pictures = [ramp("yuv422p10le", Colour(9, 9, 16, full_range=True))]
    written(tmp_path / "out.mov", pictures, codec="prores")
    reader = VideoReader(tmp_path / "out.mov")
    assert reader.info.colour == Colour(9, 9, 16)
    (found,) = reader.pictures()
    seen, expected = (p.view(np.eye(3)[:2], WIDTH, HEIGHT).astype(int) for p in (found, pictures[0]))
    assert np.abs(seen - expected).mean() < 1


def test_prores_says_that_it_drops_bits(tmp_path: Path) -> None:
    assert written(tmp_path / "out.mov", [ramp("yuv444p12le")], codec="prores").losses == (
        "12 bits a sample become 10",
    )


@pytest.mark.parametrize("frames", [1, 2])
def test_hevc_of_one_and_two_frames(tmp_path: Path, frames: int) -> None:
    for i in range(12):  # it failed now and then
        written(tmp_path / f"{i}.mp4", [ramp("yuv420p10le", i=k) for k in range(frames)])
        assert len(list(VideoReader(tmp_path / f"{i}.mp4").pictures())) == frames


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_without_alpha_transparent_parts_are_black_and_it_is_said(tmp_path: Path, suffix: str) -> None:
    picture = ramp("yuva444p10le")
    writer = written(tmp_path / f"out{suffix}", [picture])
    assert [loss for loss in writer.losses if "alpha" in loss]
    (found,) = VideoReader(tmp_path / f"out{suffix}").pictures()
    opacity = picture.planes[3] / 1023
    expected = picture.view(np.eye(3)[:2], WIDTH, HEIGHT) * opacity[..., None]
    seen = found.view(np.eye(3)[:2], WIDTH, HEIGHT)
    assert np.abs(seen[4:-4, 56:-4] - expected[4:-4, 56:-4]).max() < 6
    assert np.abs(seen[4:-4, 4:40] - expected[4:-4, 4:40]).max() < 6


def test_an_opaque_alpha_channel_is_no_loss(tmp_path: Path) -> None:
    opaque = Picture.of(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).converted(PictureFormat("gbrap", WIDTH, HEIGHT))
    assert written(tmp_path / "out.mp4", [opaque]).losses == ()


@pytest.mark.parametrize("codec", ["hevc", "av1"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_hdr_metadata_are_copied(tmp_path: Path, suffix: str, codec: str) -> None:
    written(tmp_path / f"out{suffix}", [ramp("yuv420p10le")], codec=codec, hdr=DISPLAY)
    found = VideoReader(tmp_path / f"out{suffix}").info.hdr
    assert found is not None
    assert found.light == DISPLAY.light
    assert found.primaries is not None
    assert found.luminance is not None
    assert DISPLAY.primaries is not None
    assert DISPLAY.luminance is not None
    np.testing.assert_allclose(np.array(found.primaries, float), np.array(DISPLAY.primaries, float), atol=2e-5)
    np.testing.assert_allclose(np.array(found.luminance, float), np.array(DISPLAY.luminance, float), rtol=0.03)


def test_codecs_that_cannot_hold_hdr_metadata_say_so(tmp_path: Path) -> None:
    for codec, name in (("h264", "out.mp4"), ("prores", "out.mov")):
        writer = written(tmp_path / name, [ramp("yuv420p10le")], codec=codec, hdr=DISPLAY)
        assert [loss for loss in writer.losses if "HDR" in loss]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"codec": "theora"}, "theora"), ({"codec": "prores"}, "prores in .mp4"), ({"preset": "slowest"}, "slowest")],
)
def test_wrong_choices_are_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoWriter(tmp_path / "out.mp4", 64, 48, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
