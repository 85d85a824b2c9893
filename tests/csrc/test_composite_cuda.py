"""Compositing's CUDA kernels, run as CPU code, against the compositing of the CPU, also under sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from lipstream.face import crop
from lipstream.face.compositing import Compositor, colour_offset
from lipstream.media import Colour, Picture
from lipstream.media.pixel_format import PictureFormat
from numpy.typing import NDArray
from test_kernels_on_cpu import SANITIZERS, WITHOUT_BARRIERS, compiled


@pytest.fixture(scope="module", params=[[], SANITIZERS], ids=["plain", "sanitized"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("composite"), "composite_cuda_test", *request.param)


def keep_mask(size: int) -> NDArray[np.float32]:
    mask = np.ones((size, size), np.float32)
    cv2.ellipse(mask, (size // 2, round(0.6 * size)), (round(0.36 * size), round(0.3 * size)), 0, 0, 360, 0.0, -1)
    return np.asarray(np.minimum(cv2.GaussianBlur(mask, (0, 0), size / 40), 1), np.float32)


def scene(seed: int, name: str, size: int, scale: float) -> tuple[Compositor, Picture, Any, Any, Any]:
    """A compositor, a noisy frame, a generated crop with a cast and other edges, the true crop, and the matrix."""
    rng = np.random.default_rng(seed)
    height, width = 150, 190
    coarse = rng.uniform(0, 255, (9, 12, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 6, (height, width, 3))
    frame = Picture.of(np.clip(image, 0, 255).astype(np.uint8))
    frame = frame.converted(PictureFormat(name, width, height, Colour(full_range=name == "gbrp")))
    angle = rng.uniform(-0.6, 0.6)
    linear = 420 / size / scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, (210.0, 280.0) - linear @ rng.uniform((50, 40), (140, 110))])
    view = crop(frame, matrix, size)
    cast = rng.uniform(-40, 40, 3) + np.linspace(0, 30, size)[:, None, None]
    generated = np.clip(view + cast, 0, 255).astype(np.uint8)
    generated[: size // 3, : size // 4] = 0  # an edge that is not there in the source
    return Compositor(keep_mask(size)), frame, generated, view, matrix


def on_device(program: Path, scene: tuple[Compositor, Picture, Any, Any, Any]) -> tuple[Any, list[Any]]:
    """The colour offset, and the samples of each plane's region."""
    compositor, frame, generated, view, matrix = scene
    overlay = compositor.overlay(frame, view, matrix)
    assert overlay is not None
    mask, filter = overlay.mask, overlay.filter
    left, top, right, bottom = overlay.region
    regions = frame.regions(left, top, right - left, bottom - top)
    cells = len(mask.trusted)
    numbers = [compositor.size, cells, *mask.shown, filter.block, filter.pad, *overlay.region]
    numbers += [filter.x.shape[1], filter.y.shape[1], len(regions)]
    arrays = [
        generated,
        overlay.wanted,
        mask.trusted,
        mask.alpha,
        filter.x,
        filter.y,
        filter.to_picture,
        overlay.to_crop,
    ]
    for plane, region in zip(frame.planes, regions, strict=False):
        x, y = region.x, region.y
        numbers += [*region.shape, x.first, y.first, *region.step, len(x.weights), len(y.weights), plane.itemsize]
        arrays += [x.weights, y.weights, np.array([*region.row, region.most], np.float32), plane[region.at]]
    sent = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    done = subprocess.run([program, *map(str, numbers)], input=sent, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    offset = np.frombuffer(done.stdout, np.float32, cells * cells * 3).reshape(cells, cells, 3)
    at, samples = offset.nbytes, []
    for plane, region in zip(frame.planes, regions, strict=False):
        size = region.shape[0] * region.shape[1]
        samples.append(np.frombuffer(done.stdout, plane.dtype, size, at).reshape(region.shape))
        at += size * plane.itemsize
    assert at == len(done.stdout)
    return offset, samples


def differences(program: Path, scene: tuple[Compositor, Picture, Any, Any, Any]) -> tuple[float, list[int], int]:
    """Greatest differences: of the offset, and of samples in each plane; and how many samples differ."""
    compositor, frame, generated, view, matrix = scene
    offset, samples = on_device(program, scene)
    overlay = compositor.overlay(frame, view, matrix)
    assert overlay is not None
    expected = colour_offset(generated / np.float32(255), overlay.wanted, overlay.mask.trusted)
    left, top, right, bottom = overlay.region
    regions = frame.regions(left, top, right - left, bottom - top)
    found, whole = frame.patched(regions, samples), compositor.composite(frame, generated, view, matrix)
    changes = [int((a != b).sum()) for a, b in zip(whole.planes, frame.planes, strict=True)]
    assert min(changes) > 100
    apart = [np.abs(a.astype(int) - b) for a, b in zip(found.planes, whole.planes, strict=True)]
    return float(np.abs(offset - expected).max()), [int(x.max()) for x in apart], sum(int((x > 0).sum()) for x in apart)


SCENES = pytest.mark.parametrize(
    ("name", "size", "scale"),
    [
        ("yuv420p", 64, 1.0),  # the frame is as fine as the crop
        ("yuv420p", 64, 1.6),  # finer
        ("yuv420p10le", 96, 0.7),  # coarser
        ("yuv444p", 250, 0.25),  # much coarser: blocks are averaged first, which do not divide the crop
        ("gbrp", 80, 0.8),  # a cell of the grid is 2.5 pixels
        ("gray", 24, 3.0),  # fewer cells than 32, and sides that are not halves
    ],
)


@SCENES
def test_the_device_composites_as_the_cpu_does(program: Path, name: str, size: int, scale: float) -> None:
    for seed in range(2):
        offset, apart, count = differences(program, scene(seed, name, size, scale))
        assert offset < 2e-6
        assert max(apart) <= 1
        assert count <= 3  # a value that lies half-way may be rounded to the other side


def test_a_missing_barrier_would_show(tmp_path: Path) -> None:
    program = compiled(tmp_path, "composite_cuda_test", WITHOUT_BARRIERS)
    assert not differences(program, scene(0, "yuv420p", 64, 1.0))[0] < 1e-3


@SCENES
def test_a_gpu_composites_as_the_cpu_does(name: str, size: int, scale: float) -> None:
    """Through what the TensorRT backend calls, on a GPU."""
    native: Any = pytest.importorskip("lipstream._native_cuda", reason="the CUDA kernels are not built")
    if native.device_count() == 0:
        pytest.skip("needs a GPU")
    pytest.importorskip("tensorrt", reason="needs TensorRT's package, which the backend imports")
    from cuda.bindings import runtime
    from lipstream.backends.tensorrt.compositing import FrameCompositor
    from lipstream.backends.tensorrt.cuda import Cuda, DeviceMemory, Lane

    scenes = [scene(seed, name, size, scale) for seed in range(3)]
    api = Cuda(runtime)
    lane = Lane(api, "decode")
    on_gpu = FrameCompositor(SimpleNamespace(cuda=api, decode=lane, kernels=native))  # type: ignore[arg-type]
    for side in (0, 1):
        mask = scenes[0][0]
        overlays = [mask.overlay(frame, view, matrix) for _, frame, _, view, matrix in scenes]
        pictures = np.stack([generated for _, _, generated, _, _ in scenes])
        memory = DeviceMemory(api, {"pictures": pictures.nbytes})
        on_gpu.stage(side, overlays)
        lane.upload(memory.address, pictures)
        on_gpu.enqueue(side, lane, memory.address, size)
        lane.synchronize()
        for patch, overlay, (_, frame, generated, view, matrix) in zip(
            on_gpu.patches(side), overlays, scenes, strict=True
        ):
            assert patch is not None
            assert overlay is not None
            found = frame.patched(overlay.samples, patch)
            expected = mask.composite(frame, generated, view, matrix)
            for a, b in zip(found.planes, expected.planes, strict=True):
                assert np.abs(a.astype(int) - b).max() <= 1
