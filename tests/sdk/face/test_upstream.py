"""The released system's crop and compositing, compared with the original's sequence of PyTorch operations."""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from lipstream import samples
from lipstream.cli import main
from lipstream.cli.run import RUN, _quality
from lipstream.dub import upstream_frames
from lipstream.errors import ConfigError
from lipstream.face import FaceOptions
from lipstream.face.tracking import Seen, Tracker
from lipstream.face.upstream import UpstreamCompositor, crop
from lipstream.media import Picture, VideoReader
from lipstream.media.loop import FrameLoop
from lipstream.session.reference import FaceObserver, SourceFrame, _tracked
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

MATRIX = np.array([[1.31, 0.22, -260.0], [-0.22, 1.31, -55.0]])  # exact in half precision or not: it is rounded
HEIGHT, WIDTH, SIZE = 480, 640, 128


def frame() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).random((HEIGHT // 8, WIDTH // 8, 3)).astype(np.float32)
    return np.asarray(255 * np.clip(cv2.resize(noise, (WIDTH, HEIGHT)), 0, 1), np.uint8)


def warp(x: Tensor, matrix: NDArray[np.float64], height: int, width: int, fill: float) -> Tensor:
    """kornia's warp_affine, bilinear, corners aligned, padded with `fill`: [C, H, W] through `matrix`."""
    back = torch.from_numpy(np.linalg.inv(np.vstack([matrix, [0, 0, 1]])))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    spots = torch.stack([columns, rows, torch.ones_like(rows)], -1).double() @ back.T
    grid = 2 * spots[..., :2] / torch.tensor([x.shape[2] - 1.0, x.shape[1] - 1.0]) - 1
    both = torch.cat([x, torch.ones_like(x[:1])])[None].double()
    found = F.grid_sample(both, grid[None], align_corners=True)[0]
    return found[:-1] + fill * (1 - found[-1:])


def halved() -> NDArray[np.float64]:
    return MATRIX.astype(np.float16).astype(np.float64)


def test_the_crop_is_resampled_from_the_canvas_and_truncated() -> None:
    picture = frame()
    canvas = warp(torch.from_numpy(picture).permute(2, 0, 1), halved(), 560, 420, 127.0)
    # In half precision, then truncated.
    exact = canvas.half().to(torch.uint8).permute(1, 2, 0).numpy()
    expected = cv2.resize(exact, (SIZE, SIZE), interpolation=cv2.INTER_LANCZOS4)
    found = crop(picture, MATRIX, SIZE)
    assert found.shape == (SIZE, SIZE, 3)
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.abs(found.astype(int) - expected).mean() < 0.05


def test_the_face_is_pasted_as_the_original_does() -> None:
    picture, rng = frame(), np.random.default_rng(1)
    keep = np.ones((SIZE, SIZE), np.float32)
    keep[70:120, 20:108] = 0
    view, generated = crop(picture, MATRIX, SIZE), rng.random((SIZE, SIZE, 3), np.float32)
    found = UpstreamCompositor(keep).composite(Picture.of(picture), generated, view, MATRIX).rgb

    mask = torch.from_numpy(keep)
    face = torch.from_numpy(generated).permute(2, 0, 1) * (1 - mask)
    face = face + torch.from_numpy(view).permute(2, 0, 1) / 255 * mask
    face = F.interpolate(face[None], (560, 420), mode="bicubic", antialias=True)[0] * 2 - 1
    back = cv2.invertAffineTransform(halved())
    pasted = (warp(face, back, HEIGHT, WIDTH, 127.0) / 2 + 0.5).clamp(0, 1) * 255
    inside = warp(torch.ones(1, 560, 420), back, HEIGHT, WIDTH, 0.0)
    inside = -F.max_pool2d(F.pad(-inside, (1, 0, 1, 0), value=-1e4), 2, stride=1)
    edge = int(float(inside.sum()) ** 0.5) // 20
    soft = cv2.erode(inside[0].float().numpy(), np.ones((2 * edge, 2 * edge), np.uint8))
    size = 2 * edge + 1
    x = np.arange(size) - edge
    kernel = np.exp(-(x**2) / (2 * (0.3 * ((size - 1) * 0.5 - 1) + 0.8) ** 2))
    weights = torch.from_numpy(kernel / kernel.sum())
    padded = F.pad(torch.from_numpy(soft).double()[None, None], (edge,) * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(padded, weights[None, None, None]), weights[None, None, :, None])[0]
    source = torch.from_numpy(picture).permute(2, 0, 1)
    expected = (blurred * inside * pasted + (1 - blurred) * source).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1.02  # truncated
    assert (found != picture).any(axis=2).mean() > 0.2  # the whole face, not the mouth alone


def test_frames_as_they_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "thirty.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height = 64, 48
        for i in range(30):
            image = np.full((48, 64, 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    stored = [int(picture.mean()) for picture in VideoReader(path, opencv=True)]
    assert len(stored) == 30
    assert np.abs(np.array(stored) - 8 * np.arange(30)).max() <= 3
    assert sum(1 for _ in VideoReader(path)) == 25


def test_a_bundle_that_crops_the_canvas_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    arguments = ["run", str(samples.FACE), str(samples.SPEECH), "-o", str(out), "--upstream"]
    assert main(arguments) == ConfigError.exit_code
    assert "omit the option upstream" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--upstream"], {"first_crf": 13, "crf": 18, "preset": "medium"}),
        (["--upstream", "--crf", "20"], {"crf": 20}),
        (["--upstream", "--lossless"], {}),
        (["--preset", "slow"], {"preset": "slow"}),
        ([], {}),
    ],
)
def test_the_command_encodes_twice_where_no_quality_is_given(arguments: list[str], expected: dict[str, object]) -> None:
    parser = argparse.ArgumentParser()
    RUN.add_arguments(parser)
    assert _quality(parser.parse_args(["a.mp4", "-o", "b.mp4", *arguments])) == expected


def test_a_picture_of_bytes_is_that_of_their_fractions() -> None:
    picture = frame()
    view = crop(picture, MATRIX, SIZE)
    compositor, generated = UpstreamCompositor(np.zeros((SIZE, SIZE), np.float32)), view[::-1]
    expected = compositor.composite(Picture.of(picture), generated / np.float32(255), view, MATRIX).rgb
    assert not np.array_equal(expected, picture)
    np.testing.assert_array_equal(compositor.composite(Picture.of(picture), generated, view, MATRIX).rgb, expected)


def test_a_tiny_face_leaves_the_frame_unchanged() -> None:
    picture, far = frame(), np.array([[30.0, 0, -9000], [0, 30.0, -6000]])
    view = crop(picture, far, SIZE)
    compositor = UpstreamCompositor(np.zeros((SIZE, SIZE), np.float32))
    found = compositor.composite(Picture.of(picture), view / np.float32(255), view, far).rgb
    np.testing.assert_array_equal(found, picture)


def test_as_many_frames_as_the_original() -> None:
    """L = 3 floor((1 + (int(25 seconds) - 1) // 4) / 3) latent frames, 1 + 4 (L - 1) frames; at least a chunk."""
    found = [upstream_frames(seconds) for seconds in (0.2, 0.4, 1.0, 1.8, 1.83, 2.27, 2.29, 20.0)]
    assert found == [9, 9, 21, 45, 45, 45, 57, 489]


class Remembering(Tracker):
    """The face moves to the right, and is not found in every third frame. Attributes: seen: calls so far."""

    def __init__(self) -> None:
        super().__init__(smooth=False)
        self.seen = 0

    def _see(self, frame: Picture) -> Seen | None:
        self.seen += 1
        if self.seen % 3 == 0:
            return None
        points = np.array([[40, 50], [80, 50], [60, 70]], np.float64) + np.array([self.seen, 0])
        return np.zeros((106, 2), np.float32), 0.9, points

    def _is_alike(self, frame: Picture, matrix: NDArray[np.float64], least: float = 0.0) -> bool:
        return True


class Place:
    """A pipeline whose crop is the first number of the matrix's last column, and the picture's brightness."""

    def crop(self, frame: Picture, matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
        return np.full((8, 8, 3), frame.rgb[0, 0, 0], np.uint8)


def observed(upstream: bool) -> tuple[list[SourceFrame], int]:
    """Seven frames of a video of four, played forwards and backwards, and the number of detections."""
    frames = [np.full((100, 120, 3), 10 * i, np.uint8) for i in range(4)]
    tracker = Remembering()
    observe = FaceObserver(FaceOptions(upstream=upstream), tracker, Place())  # type: ignore[arg-type]
    found = list(_tracked(frames, FrameLoop(frames, 7), observe, np.zeros((8, 8, 3), np.uint8)))
    return found, tracker.seen


def test_a_frame_that_is_shown_again_is_searched_again() -> None:
    ours, once = observed(upstream=False)
    theirs, twice = observed(upstream=True)
    assert (once, twice) == (4, 7)
    for back, forth in ((4, 2), (6, 0)):
        assert ours[back].matrix is not None
        np.testing.assert_array_equal(ours[back].matrix, ours[forth].matrix)
        assert not np.array_equal(theirs[back].matrix, theirs[forth].matrix)


def test_a_face_that_is_missed_keeps_its_last_crop() -> None:
    """Not the place of it in the present frame."""
    ours, _ = observed(upstream=False)
    theirs, _ = observed(upstream=True)
    assert [frame.held for frame in theirs] == [False, False, True, False, False, True, False]
    assert [int(frame.crop[0, 0, 0]) for frame in ours[:4]] == [0, 10, 20, 30]
    assert [int(frame.crop[0, 0, 0]) for frame in theirs] == [0, 10, 10, 30, 20, 20, 0]
