"""Chunks on two threads: the same pictures as on one, for any calls of the session and any timing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lipstream import LipSyncEngine
from lipstream.backends import ChunkStream
from lipstream.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSteps
from lipstream.backends.pipelined import PipelinedStream
from lipstream.backends.stepped import SteppedStream
from lipstream.bundle import Bundle
from lipstream.errors import SessionClosedError
from numpy_stream import noise
from toy_sessions import CHUNKS, FRAME, RATE, Result, Script, export_toy, offline, session, talk, whole


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_toy(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> dict[str, Result]:
    return {"talk": talk(offline(bundle)), "whole": whole(offline(bundle))}


def pipelined(bundle: Bundle) -> PipelinedStream:
    steps = OnnxRuntimeBackend(bundle, threads=1).open_steps()
    assert isinstance(steps, OnnxRuntimeSteps)
    m = bundle.manifest
    return PipelinedStream(steps, m.t_list, m.geometry.sequence, bundle.constants["mask.latent"])


def run(bundle: Bundle, script: Script) -> Result:
    with session(pipelined(bundle), bundle) as opened:
        return script(opened)


SCRIPTS: dict[str, Script] = {"talk": talk, "whole": whole}


def slow(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Delay the stream's calls at random."""
    rng = np.random.default_rng(seed)
    for name in ("denoise", "context", "decode", "encode_video"):
        call: Callable[..., Any] = getattr(OnnxRuntimeSteps, name)

        def late(*args: Any, call: Callable[..., Any] = call) -> Any:
            time.sleep(float(rng.choice([0, 0, 0.004])))
            return call(*args)

        monkeypatch.setattr(OnnxRuntimeSteps, name, late)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCRIPTS)
def test_frames_are_those_of_one_thread(
    bundle: Bundle, expected: dict[str, Result], name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed:
        slow(monkeypatch, seed)
    run(bundle, SCRIPTS[name]).same(expected[name])


def test_the_lanes_do_overlap(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass waits for a decoder that is running at the time: on one lane this would never end."""
    decode, denoise = OnnxRuntimeSteps.decode, OnnxRuntimeSteps.denoise
    decoding, met = threading.Event(), threading.Event()

    def slow_decode(self: Any, *args: Any) -> Any:
        decoding.set()
        met.wait(20)
        return decode(self, *args)

    def meet(self: Any, *args: Any) -> Any:
        if decoding.is_set():
            met.set()
        return denoise(self, *args)

    monkeypatch.setattr(OnnxRuntimeSteps, "decode", slow_decode)
    monkeypatch.setattr(OnnxRuntimeSteps, "denoise", meet)
    with session(pipelined(bundle), bundle) as opened:
        opened.push_audio(noise(60 * FRAME), RATE)
        opened.flush()
        assert len(list(opened)) == 60
    assert met.is_set()


@pytest.mark.parametrize("kept", ["video_encoder", "video_decoder"])
def test_a_memory_that_is_not_restored_changes_the_pictures(
    bundle: Bundle, expected: dict[str, Result], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    retract = OnnxRuntimeSteps.retract

    def half(self: Any, *, encoded: bool) -> None:
        retract(self, encoded=encoded)
        self._memory[kept].swap()

    monkeypatch.setattr(OnnxRuntimeSteps, "retract", half)
    with pytest.raises(AssertionError):
        run(bundle, talk).same(expected["talk"])


def test_a_sink_that_is_kept_twice_changes_the_pictures(
    bundle: Bundle, expected: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = OnnxRuntimeSteps.begin_chunk

    def again(self: Any, chunk: int) -> None:
        self._ring._begun = -1
        begin(self, chunk)

    monkeypatch.setattr(OnnxRuntimeSteps, "begin_chunk", again)
    with pytest.raises(AssertionError):
        run(bundle, talk).same(expected["talk"])


@pytest.mark.parametrize("call", ["encode_video", "denoise", "decode", "context"])
def test_an_error_on_a_lane_ends_the_session(bundle: Bundle, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Any] = getattr(OnnxRuntimeSteps, call)
    calls = iter(range(10_000))

    def fails(*args: Any) -> Any:
        if next(calls) >= 4:
            raise MemoryError("planted")
        return right(*args)

    monkeypatch.setattr(OnnxRuntimeSteps, call, fails)
    with session(pipelined(bundle), bundle) as opened:
        opened.push_audio(noise(12 * CHUNKS * FRAME), RATE)
        with pytest.raises(MemoryError, match="planted"):
            list(opened)
        with pytest.raises(SessionClosedError, match="MemoryError"):
            opened.push_audio(noise(10), RATE)
    assert not lanes(patience=10)


def test_closing_leaves_no_thread(bundle: Bundle) -> None:
    opened = session(pipelined(bundle), bundle)
    opened.push_audio(noise(80 * FRAME), RATE)
    next(iter(opened))
    assert lanes()
    opened.close()
    assert not lanes(patience=10)


def lanes(patience: float = 0) -> list[str]:
    """Threads of the stream that still run after `patience` seconds."""
    names = ("lipstream-passes", "lipstream-decode")
    end = time.monotonic() + patience
    while (found := [t.name for t in threading.enumerate() if t.name.startswith(names)]) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def test_a_backend_with_two_threads_pipelines_and_gives_the_frames_of_steps(speaker: Any, tiny: Path) -> None:
    """Threads inside a graph are the same in both: those alone may change a last bit."""
    bundle = Bundle.load(tiny)

    class Stepped(OnnxRuntimeBackend):
        def open_stream(self) -> ChunkStream:
            m = self.manifest
            return SteppedStream(self.open_steps(), m.t_list, m.geometry.sequence, self.constants["mask.latent"])

    found = []
    for backend in (OnnxRuntimeBackend(bundle, threads=2), Stepped(bundle, threads=2)):
        assert isinstance(backend.open_stream(), PipelinedStream) != isinstance(backend, Stepped)
        with LipSyncEngine(bundle, backend).session(speaker) as opened:
            opened.push_audio(noise(2 * RATE), RATE)
            opened.flush()
            found.append(np.stack([frame.image for frame in opened]))
    np.testing.assert_array_equal(*found)
