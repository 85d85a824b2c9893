"""Pictures in their source's pixel format: what is kept, what is read, and what is blended in."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from lipstream.errors import ConfigError
from lipstream.media import Colour, Picture, PictureFormat, VideoReader
from lipstream.media.av_frame import allocate
from lipstream.media.pixel_format import planar
from numpy.typing import NDArray

WIDTH, HEIGHT = 38, 29
PLANAR = [
    *(
        "yuv420p",
        "yuv422p",
        "yuv444p",
        "yuv440p",
        "yuv411p",
        "yuv410p",
        "yuva420p",
        "yuva444p",
        "gray",
        "gbrp",
        "gbrap",
    ),
    *("yuv420p10le", "yuv422p10le", "yuv444p12le", "yuva444p10le", "yuv420p16le", "gbrp10le", "gray12le"),
]
COLOURS = [Colour(1), Colour(6), Colour(9), Colour(1, full_range=True), Colour(6, full_range=True)]
LEFT, CENTRE, TOP_LEFT, BOTTOM = (0.0, 0.5), (0.5, 0.5), (0.0, 0.0), (0.5, 1.0)


def noise(format: PictureFormat, seed: int = 0) -> Picture:
    """A picture of random samples."""
    rng = np.random.default_rng(seed)
    frame, planes = allocate(format)
    for plane in planes:
        plane[...] = rng.integers(0, 1 << format.depth, plane.shape)
    return Picture(frame, format)


def blob(format: PictureFormat, seed: int = 1) -> tuple[int, int, NDArray[np.float32]]:
    """A block for `blended`: a soft spot in random colours."""
    rng = np.random.default_rng(seed)
    left, top, width, height = 13, 8, 21, 19
    y, x = np.mgrid[:height, :width]
    opacity = np.clip(1.6 - np.hypot((x - 10) / 5, (y - 9) / 5), 0, 1)
    return left, top, np.dstack([rng.random((height, width, 3)) * opacity[..., None], opacity]).astype(np.float32)


def code_values(format: PictureFormat, rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Code values [..., planes] of R'G'B' [..., 3] in [0, 1], by the formulas of H.273."""
    r, g, b = np.moveaxis(rgb, -1, 0)
    top = 2**format.depth - 1
    if format.is_rgb:
        return np.stack([g, b, r], -1) * top
    kr, kb = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[format.colour.matrix]
    y = kr * r + (1 - kr - kb) * g + kb * b
    pb, pr = 0.5 * (b - y) / (1 - kb), 0.5 * (r - y) / (1 - kr)
    if format.colour.full_range:
        return np.stack([top * y, top * pb + 2 ** (format.depth - 1), top * pr + 2 ** (format.depth - 1)], -1)
    unit = 2 ** (format.depth - 8)
    return np.stack([219 * y + 16, 224 * pb + 128, 224 * pr + 128], -1) * unit


@pytest.mark.parametrize(
    ("name", "colour", "siting"),
    [
        *((name, colour, LEFT) for name in PLANAR for colour in COLOURS),
        *((name, COLOURS[0], siting) for name in ("yuv420p", "yuv422p10le") for siting in (CENTRE, TOP_LEFT, BOTTOM)),
    ],
    ids=str,
)
def test_blending_changes_what_the_block_covers_and_no_other_bit(
    name: str, colour: Colour, siting: tuple[float, float]
) -> None:
    format = PictureFormat(name, WIDTH, HEIGHT, colour, siting)
    picture, (left, top, block) = noise(format), blob(format)
    result = picture.blended(picture.regions(left, top, block.shape[1], block.shape[0]), block)
    assert result.format == format
    canvas = np.zeros((HEIGHT + 8, WIDTH + 8, 4))
    canvas[top + 4 : top + 4 + block.shape[0], left + 4 : left + 4 + block.shape[1]] = block
    opacity = canvas[..., 3]
    colours = np.divide(
        canvas[..., :3], opacity[..., None], where=opacity[..., None] > 0, out=np.zeros((*opacity.shape, 3))
    )
    wanted = code_values(format, colours) * opacity[..., None]
    changed = 0
    for index, (layout, before, after) in enumerate(zip(format.planes, picture.planes, result.planes, strict=True)):
        if (format.has_alpha and index == len(format.planes) - 1) or index >= wanted.shape[-1]:
            np.testing.assert_array_equal(after, before)
            continue
        for row, column in np.ndindex(before.shape):
            # The mean over the rectangle of `step` pixels around the sample, each pixel by its share in it.
            (step_x, step_y), (at_x, at_y) = layout.step, layout.start
            x = np.arange(WIDTH + 8) - 4 - column * step_x - at_x
            y = np.arange(HEIGHT + 8) - 4 - row * step_y - at_y
            share_x = np.clip(step_x / 2 + 0.5 - np.abs(x), 0, 1) if step_x > 1 else (x == 0).astype(float)
            share_y = np.clip(step_y / 2 + 0.5 - np.abs(y), 0, 1) if step_y > 1 else (y == 0).astype(float)
            share = share_y[:, None] * share_x / (step_x * step_y)
            covered = float((share * opacity).sum())
            if covered == 0:
                assert after[row, column] == before[row, column]
                continue
            value = (share * wanted[..., index]).sum() + (1 - covered) * before[row, column]
            assert abs(after[row, column] - value) <= 0.5 + 2e-6 * 2**format.depth
            changed += 1
    assert changed > 100


@pytest.mark.parametrize("name", ["yuv420p", "yuv420p10le", "yuv444p16le", "gbrp"])
@pytest.mark.parametrize("rgb", [(1, 0, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0)])
def test_saturated_colours_stay_in_range(name: str, rgb: tuple[int, int, int]) -> None:
    """In full range the chroma of pure red and blue would round to one more than the largest code value."""
    format = PictureFormat(name, 32, 32, Colour(6, full_range=True))
    block = np.ones((32, 32, 4), np.float32) * np.float32([*rgb, 1])
    picture = noise(format)
    result = picture.blended(picture.regions(0, 0, 32, 32), block)
    top = 2**format.depth - 1
    for plane, wanted in zip(result.planes, code_values(format, np.array(rgb, float)), strict=True):
        assert np.abs(plane.astype(float) - min(wanted, top)).max() <= 0.5 + 1e-5 * top


@pytest.mark.parametrize("colour", COLOURS, ids=str)
@pytest.mark.parametrize("name", PLANAR)
def test_a_view_equals_ffmpegs_conversion(name: str, colour: Colour) -> None:
    """The view of the whole picture, against swscale; smooth chroma, since swscale clips between its two steps."""
    if name.startswith("gray"):
        colour = replace(colour, full_range=True)  # as swscale takes it
    height, width = 64, 96
    y, x = np.mgrid[:height, :width]
    image = np.stack([80 + x, 200 - y, 60 + x // 2 + y], -1).astype(np.uint8)
    picture = Picture.of(image).converted(PictureFormat(name, width, height, colour))
    inner = np.s_[4:-4, 8:-8]  # at the border, interpolation of chroma may continue it differently
    for seen in (picture.view(np.eye(3)[:2], width, height), picture.cropped(np.eye(3)[:2], width, height)):
        assert np.abs(seen.astype(int) - picture.rgb)[inner].max() <= 3
        if "gray" not in name:
            assert np.abs(seen.astype(int) - image)[inner].max() <= 4


def test_a_view_of_a_part_that_shrinks_is_its_mean() -> None:
    picture = noise(PictureFormat("yuv420p10le", 64, 64))
    matrix = np.array([[1 / 8, 0, (1 / 8 - 1) / 2], [0, 1 / 8, (1 / 8 - 1) / 2]])
    means = [cv2.resize(plane.astype(np.float64), (8, 8), interpolation=cv2.INTER_AREA) for plane in picture.planes]
    luma = code_values(picture.format, np.ones(3))[0], code_values(picture.format, np.zeros(3))[0]
    brightness = 255 * (means[0] - luma[1]) / (luma[0] - luma[1])
    seen = picture.view(matrix, 8, 8).astype(float) @ [0.2126, 0.7152, 0.0722]
    inside = (brightness > 60) & (brightness < 200)  # where noisy chroma is not clipped
    assert inside.sum() > 20
    assert np.abs(seen - brightness)[inside].mean() < 3


def test_a_crop_that_shrinks_keeps_waves_that_it_can_hold_and_no_others() -> None:
    """From 240 to 100 pixels: half a wave in a pixel of the crop is the limit."""
    rows = np.arange(240)
    kept, lost = (np.tile(128 + 100 * np.sin(2 * np.pi * rows / period), (240, 1)) for period in (7.2, 2.8))
    matrix = np.array([[100 / 240, 0, (100 / 240 - 1) / 2], [0, 100 / 240, (100 / 240 - 1) / 2]])
    for wave, least, most in ((kept, 85, 105), (lost, 0, 8)):
        picture = Picture.of(np.repeat(np.rint(wave).astype(np.uint8)[..., None], 3, axis=2))
        seen = picture.cropped(matrix, 100, 100)[20:-20, 20:-20, 0].astype(float)
        assert least <= seen.std() * 2**0.5 <= most


@pytest.mark.parametrize("border", [True, False])
def test_beyond_the_picture_a_view_repeats_the_border_or_is_black(border: bool) -> None:
    picture = Picture.of(np.full((32, 32, 3), 200, np.uint8)).converted(PictureFormat("yuv420p", 32, 32))
    seen = picture.view(np.array([[1.0, 0, 16], [0, 1, 16]]), 64, 64, border=border)
    assert np.abs(seen[20:44, 20:44].astype(int) - 200).max() <= 1
    assert np.abs(seen[:12].astype(int) - (200 if border else 0)).max() <= 1


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *[
            ("nv12", "yuv420p"),
            ("nv21", "yuv420p"),
            ("yuyv422", "yuv422p"),
            ("uyvy422", "yuv422p"),
            ("nv16", "yuv422p"),
        ],
        *[("p010le", "yuv420p10le"), ("p010be", "yuv420p10le"), ("yuv420p10be", "yuv420p10le"), ("nv24", "yuv444p")],
        *[("yuvj420p", "yuv420p"), ("rgb24", "gbrp"), ("bgr0", "gbrp"), ("rgba", "gbrap"), ("rgb48le", "gbrp16le")],
        *[
            ("gray", "gray"),
            ("gray10le", "gray10le"),
            ("ya8", "yuva444p"),
            ("pal8", "gbrap"),
            ("rgba64be", "gbrap16le"),
        ],
    ],
)
def test_every_format_has_a_planar_one(name: str, kept: str) -> None:
    assert planar(name) == kept
    assert planar(kept) == kept


def test_every_format_of_ffmpeg_has_a_planar_one_without_loss_of_bits() -> None:
    for name in av.video.format.names:  # type: ignore[attr-defined]
        found = av.VideoFormat(name)
        if found.components:
            kept = av.VideoFormat(planar(name))
            bits = [c.bits for c in found.components]
            assert max(c.bits for c in kept.components) >= min(16, max(bits))
            assert any(c.is_alpha for c in kept.components) >= any(c.is_alpha for c in found.components)


@pytest.mark.parametrize(
    "name", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuva420p", "yuv411p", "gbrp", "gray"]
)
@pytest.mark.parametrize("turn", [(t, m, f) for t in (False, True) for m in (False, True) for f in (False, True)])
def test_turning_keeps_every_luma_sample(name: str, turn: tuple[bool, bool, bool]) -> None:
    transposed, mirrored, flipped = turn
    picture = noise(PictureFormat(name, WIDTH, HEIGHT))
    turned = picture.turned(*turn)
    expected = picture.planes[0].T if transposed else picture.planes[0]
    expected = expected[:, ::-1] if mirrored else expected
    expected = expected[::-1] if flipped else expected
    np.testing.assert_array_equal(turned.planes[0], expected)
    assert (turned.width, turned.height) == ((HEIGHT, WIDTH) if transposed else (WIDTH, HEIGHT))


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "yuv444p", "gbrp"])
@pytest.mark.parametrize("turn", [(t, m, f) for t in (False, True) for m in (False, True) for f in (False, True)])
def test_turning_moves_chroma_with_luma(name: str, turn: tuple[bool, bool, bool]) -> None:
    """In R'G'B' it is the same as turning the converted picture."""
    transposed, mirrored, flipped = turn
    y, x = np.mgrid[:48, :64]
    image = np.stack([120 + 60 * np.sin(x / 5), 128 + y, 120 + 60 * np.cos((x + y) / 7)], -1).astype(np.uint8)
    picture = Picture.of(image).converted(PictureFormat(name, 64, 48))
    expected = picture.rgb.transpose(1, 0, 2) if transposed else picture.rgb
    expected = expected[:, ::-1] if mirrored else expected
    expected = expected[::-1] if flipped else expected
    seen = picture.turned(*turn).rgb
    assert np.abs(seen.astype(int) - expected)[3:-3, 3:-3].max() <= 4


@pytest.mark.parametrize(
    ("location", "siting"), [(None, LEFT), (0, LEFT), (1, CENTRE), (2, TOP_LEFT), (3, (0.5, 0.0)), (5, BOTTOM)]
)
def test_the_chroma_position_of_a_file_is_found(
    tmp_path: Path, location: int | None, siting: tuple[float, float]
) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        options = {} if location is None else {"x264-params": f"chromaloc={location}"}
        stream = container.add_stream("libx264", 25, options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    assert VideoReader(path).info.format.siting == siting


def test_arrays_of_every_kind() -> None:
    y, x = np.mgrid[:32, :48]
    image = np.stack([4 * x, 6 * y, 2 * (x + y)], -1).astype(np.uint8)
    picture = Picture.of(image)
    np.testing.assert_array_equal(picture.rgb, image)
    np.testing.assert_array_equal(picture.to_ndarray("bgr24"), image[..., ::-1])
    np.testing.assert_array_equal(picture.to_ndarray("rgba"), np.dstack([image, np.full((32, 48), 255, np.uint8)]))
    nv12 = picture.to_ndarray("nv12")
    assert nv12.shape == (48, 48)
    assert np.abs(nv12[:32] - code_values(PictureFormat("yuv420p", 48, 32), image / 255)[..., 0]).max() <= 1
    kept = picture.converted(PictureFormat("yuv420p", 48, 32))
    np.testing.assert_array_equal(kept.to_ndarray("nv12")[:32], kept.planes[0])
    np.testing.assert_array_equal(kept.to_ndarray("nv12")[32:, ::2], kept.planes[1])
    image[:] = 0
    assert picture.rgb.any()  # it was copied
    with pytest.raises(ConfigError, match="even"):
        Picture.of(np.zeros((3, 4, 3), np.uint8)).to_ndarray("nv12")
    with pytest.raises(ConfigError, match="rgb48le"):
        picture.to_ndarray("rgb48le")  # type: ignore[arg-type]
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), None):
        with pytest.raises(ConfigError):
            Picture.of(wrong)  # type: ignore[arg-type]


def test_alpha_is_kept() -> None:
    picture = noise(PictureFormat("yuva444p10le", 32, 16))
    rgba = picture.to_ndarray("rgba")
    np.testing.assert_allclose(rgba[..., 3], picture.planes[3] / 1023 * 255, atol=1.5)


def test_pictures_are_read_only() -> None:
    picture = noise(PictureFormat("yuv420p", 32, 16))
    for plane in picture.planes:
        with pytest.raises(ValueError, match="read-only"):
            plane[...] = 0
    assert picture.converted(replace(picture.format)) is picture


def _brightness(_: int) -> float:
    return float(Picture.of(np.full((16, 16, 3), 80, np.uint8)).to_ndarray("nv12")[:16].mean())


def test_conversion_works_in_a_forked_process() -> None:
    """A scaler that is kept for the next picture belongs to the process that made it."""
    expected = _brightness(0)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map_async(_brightness, [0]).get(30) == [expected]


def test_conversion_starts_no_threads() -> None:
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    picture = noise(PictureFormat("yuv420p", 64, 48))
    for format in ("rgb24", "bgr24", "rgba", "nv12"):
        picture.to_ndarray(format)  # type: ignore[arg-type]
    assert before == 0 or len(os.listdir("/proc/self/task")) == before
