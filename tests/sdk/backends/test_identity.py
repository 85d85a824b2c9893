"""A bundle with an identity: every backend takes it in place of the stream's first frame, and only there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import doubles
import numpy as np
import pytest
import torch
from doubles.device import Device
from lipstream import LipSyncEngine
from lipstream.backends import ChunkStream
from lipstream.backends.base import ChunkInput
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.bundle import CONSTANTS, IDENTITY, MANIFEST, Bundle, sha256
from lipstream.errors import BundleCorruptError
from lipstream_export.bundle import export_bundle
from lipstream_export.torch_backend import TorchBackend
from lipstream_models.parts import StudentParts
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from toy_sessions import TOY
from toys import toy_parts

Array = NDArray[np.float32]
MASKED = replace(TOY, sequence="masked")
"""The plain latents of a chunk then show in nothing but the identity."""


@pytest.fixture(scope="module")
def identity() -> Array:
    shape = (MASKED.latent_channels, 1, *MASKED.latent_size)
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, identity: Array) -> tuple[Bundle, Bundle]:
    """Without an identity, and with it."""
    folder, parts = tmp_path_factory.mktemp("identity"), toy_parts(MASKED)
    known = replace(parts, identity=torch.from_numpy(identity))
    return export_bundle(parts, folder / "plain"), export_bundle(known, folder / "known")


@contextmanager
def onnxruntime(bundle: Bundle, threads: int) -> Iterator[ChunkStream]:
    yield OnnxRuntimeBackend(bundle, threads=threads).open_stream()


@contextmanager
def pytorch(bundle: Bundle) -> Iterator[ChunkStream]:
    yield TorchBackend(StudentParts.from_bundle(bundle)).open_stream()


@contextmanager
def tensorrt(bundle: Bundle) -> Iterator[ChunkStream]:
    plans = doubles.write_plans(bundle, "native", bundle.path.with_name(f"{bundle.path.name}-plans"))
    device = Device(1)
    with doubles.gpu(device) as backends:
        yield backends.TensorRTBackend(plans).open_stream()
        assert not device.hazards


BACKENDS: dict[str, Callable[[Bundle], AbstractContextManager[ChunkStream]]] = {
    "onnxruntime": lambda bundle: onnxruntime(bundle, 1),
    "onnxruntime, two threads": lambda bundle: onnxruntime(bundle, 2),
    "torch": pytorch,
    "tensorrt": tensorrt,
}


def pictures(stream: ChunkStream, first: Array | None) -> Array:
    """Of three chunks with given latents; `first` takes the place of the first frame's plain ones."""
    rng = np.random.default_rng(3)
    shape = (MASKED.latent_channels, MASKED.chunk_frames, *MASKED.latent_size)
    frames, made = MASKED.temporal * MASKED.chunk_frames, []
    speech = toy_parts(MASKED).speech
    assert speech
    for number in range(3):
        latents = rng.standard_normal((2, *shape)).astype(np.float32)
        if first is not None and number == 0:
            latents[0, :, :1] = first
        chunk = ChunkInput(
            number=number,
            crops=None,
            latents=latents,
            samples=rng.uniform(-0.5, 0.5, speech.lookback + frames * 640 + speech.lookahead).astype(np.float32),
            noises=[rng.standard_normal(shape, np.float32) for _ in MASKED.t_list[:-1]],
            missing=0 if number else MASKED.temporal - 1,
        )
        found = stream.start(chunk, lambda name: nullcontext()).crops()
        made.append(found / np.float32(255) if found.dtype == np.uint8 else found.copy())
    stream.close()
    return np.concatenate(made)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_identity_takes_the_place_of_the_first_frame(
    name: str, bundles: tuple[Bundle, Bundle], identity: Array
) -> None:
    plain, known = bundles
    with BACKENDS[name](plain) as stream:
        own = pictures(stream, None)
    with BACKENDS[name](plain) as stream:
        wanted = pictures(stream, identity)
    with BACKENDS[name](known) as stream:
        np.testing.assert_allclose(pictures(stream, None), wanted, atol=1e-5)
    assert np.abs(own - wanted).max() > 1e-3


def test_a_checkpoint_keeps_it(tmp_path: Path, identity: Array) -> None:
    replace(toy_parts(MASKED), identity=torch.from_numpy(identity)).save(tmp_path / "checkpoint")
    found = StudentParts.from_checkpoint(tmp_path / "checkpoint").identity
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), identity)


def test_an_identity_of_another_shape_is_refused(
    bundles: tuple[Bundle, Bundle], tmp_path: Path, identity: Array
) -> None:
    changed = rewritten(bundles[1], tmp_path / "changed", identity[:, 0])
    with pytest.raises(BundleCorruptError, match=IDENTITY):
        LipSyncEngine.load(changed)


def rewritten(bundle: Bundle, folder: Path, identity: Any) -> Path:
    """A copy of a bundle with another identity, and the hashes to match."""
    shutil.copytree(bundle.path, folder)
    save_file(load_file(folder / CONSTANTS) | {IDENTITY: np.ascontiguousarray(identity)}, folder / CONSTANTS)
    manifest = json.loads((folder / MANIFEST).read_text())
    path = folder / CONSTANTS
    manifest["files"][CONSTANTS] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
