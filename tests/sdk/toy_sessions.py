"""Sessions on toy bundles, and scripts of calls to them, which must give the same pictures on any stream."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from doubles import kernels
from lipstream.backends.base import ChunkInput, ChunkStream, PendingChunk, Timed
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.bundle import Bundle
from lipstream.bundle.golden import REFERENCE
from lipstream.face import LipStreamFacePipeline
from lipstream.media import Picture
from lipstream.session import Frame, LipSyncSession
from lipstream.session.noise import noise_of
from lipstream.session.reference import SourceFrame
from lipstream_export.bundle import export_bundle
from lipstream_export.precision import quantise, to_bfloat16
from lipstream_export.reference import reference
from numpy_stream import assert_same_frames, noise
from toys import CONFIG, toy_parts

TOY = replace(CONFIG, latent_size=(4, 4), num_layers=2)
SIDE = TOY.crop_size[0]
RATE, FRAME = 16_000, 640
CHUNKS = 40
POOL = ThreadPoolExecutor(4)


class Recorded(ChunkStream):
    """A stream that records the crops it returns. Attributes: taken: one array a chunk, none if it composites.

    With `rounded`, crops of float32 are returned as the uint8 that a GPU's are rounded to.
    """

    def __init__(self, inner: ChunkStream, rounded: bool, composites: bool) -> None:
        self.inner, self.ahead, self.composites, self.rounded = inner, inner.ahead, composites, rounded
        self.taken: list[np.ndarray[Any, Any]] = []

    def start(self, chunk: ChunkInput, timed: Timed) -> PendingChunk:
        return _Recording(self, self.inner.start(chunk, timed))

    def encode_video(self, crops: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.inner.encode_video(crops)

    def close(self) -> None:
        self.inner.close()


@dataclass
class _Recording(PendingChunk):
    stream: Recorded
    inner: PendingChunk

    def crops(self) -> np.ndarray[Any, Any]:
        found = self.inner.crops()
        self.stream.taken.append(kernels.rounded(found) if self.stream.rounded else found.copy())
        return self.stream.taken[-1]

    def patches(self) -> Any:
        return self.inner.patches()

    def drop(self) -> None:
        self.inner.drop()


@dataclass(frozen=True)
class Result:
    """Results of a session: frames, and the crops that were composited into them, unless the device did that."""

    frames: list[Frame]
    crops: list[np.ndarray[Any, Any]]

    def same(self, other: Result) -> None:
        assert_same_frames(self.frames, other.frames)
        if not self.crops or not other.crops:
            return
        assert len(self.crops) == len(other.crops)
        for found, wanted in zip(self.crops, other.crops, strict=True):
            np.testing.assert_array_equal(found, wanted)


class Pictures:
    """A reference whose frames all differ; see `lipstream.session.reference.Reference`."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def frames(self, first: int, count: int) -> list[SourceFrame]:
        matrix = np.array([[420 / SIDE, 0, 0], [0, 560 / SIDE, 0]])
        images = [
            np.random.default_rng([self.seed, i]).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            for i in range(first, first + count)
        ]
        return [SourceFrame(Picture.of(image), image, matrix) for image in images]

    def latents(self, first: int) -> None: ...

    def close(self) -> None: ...


def export_toy(folder: Path) -> Bundle:
    """A bundle whose codec has memories in both halves, and whose pictures show a small difference."""
    parts = toy_parts(TOY)
    assert parts.taehv
    *_, weight, bias = parts.taehv.decoder.parameters()
    weight.data *= 10 / weight.data.abs().max()  # pictures of all greys
    bias.data[:] = 0.5
    return export_bundle(parts, folder)


def export_fp8_toy(folder: Path) -> Bundle:
    """A toy whose self-attention is in FP8, with a reference: see `lipstream export --precision fp8 --fp8-attention`.

    Its linear layers are in bfloat16. Every scale is another; what is out of their range does not occur.
    """
    parts = toy_parts(TOY)
    rounded = to_bfloat16(parts)
    assert rounded.student
    operands = [(12.0 + i, 20.0 + 2 * i, 9.0 + i) for i in range(TOY.num_layers)]
    rounded = replace(rounded, student=quantise(rounded.student, {}, operands))
    files = {REFERENCE: reference(parts, rounded).dump()}
    return export_bundle(rounded, folder, precision="fp8", files=files)


def session(
    chunks: ChunkStream,
    bundle: Bundle,
    *,
    seed: int = 0,
    pictures: int = 0,
    rounded: bool = False,
    composites: bool = False,
) -> LipSyncSession:
    face = LipStreamFacePipeline(bundle.manifest.geometry, np.zeros((SIDE, SIDE), np.float32))
    recorded = Recorded(chunks, rounded, composites)
    opened = LipSyncSession(
        bundle.manifest,
        recorded,
        Pictures(pictures),
        face,
        POOL,
        noise=noise_of(None, bundle.manifest, seed, None),
        max_pending=90,
    )
    CROPS[opened] = recorded.taken
    return opened


CROPS: WeakKeyDictionary[LipSyncSession, list[np.ndarray[Any, Any]]] = WeakKeyDictionary()


def result(opened: LipSyncSession, frames: list[Frame]) -> Result:
    return Result(frames, CROPS[opened])


def offline(bundle: Bundle, **options: Any) -> LipSyncSession:
    """A session on the ONNX Runtime backend, for the expected results."""
    return session(OnnxRuntimeBackend(bundle, threads=1).open_stream(), bundle, **options)


Script = Callable[[LipSyncSession], Result]


def whole(opened: LipSyncSession, chunks: int = CHUNKS) -> Result:
    """One long segment, all its sound at once."""
    opened.push_audio(noise((12 * chunks - 3) * FRAME), RATE)
    opened.flush()
    return result(opened, list(opened))


def short(opened: LipSyncSession) -> Result:
    return whole(opened, 12)


def talk(opened: LipSyncSession) -> Result:
    """Sound in pieces, flushes in the middle of chunks, interrupts with frames and a started chunk left."""
    sound = noise(60 * RATE, seed=3)
    frames: list[Frame] = []
    turns = [(60, 14), (30, 25), (3, 99), (50, 13), (29, 1), (40, 40), (5, 2), (31, 99), (70, 99)]
    for turn, (pushed, taken) in enumerate(turns):
        opened.push_audio(sound[turn * RATE : turn * RATE + pushed * FRAME], RATE)
        if turn % 3 == 1:
            opened.flush()
        frames += [frame for _, frame in zip(range(taken), opened, strict=False)]
        if turn in (0, 3, 4, 6):  # at first with chunk 2 started, which moves the sink
            opened.interrupt()
    opened.flush()
    return result(opened, frames + list(opened))
