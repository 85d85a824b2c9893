"""Chunks on two lanes: the pictures of one lane, whatever is said to the session and whenever a lane is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lipstream import LipSyncEngine
from lipstream.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeStream
from lipstream.backends.pipelined import OverlappedChunks
from lipstream.backends.stepped import SteppedChunks
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


def overlapped(bundle: Bundle) -> OverlappedChunks:
    stream = OnnxRuntimeBackend(bundle, threads=1).open_stream()
    assert isinstance(stream, OnnxRuntimeStream)
    return OverlappedChunks(bundle.manifest, stream, bundle.constants["mask.latent"])


def run(bundle: Bundle, script: Script) -> Result:
    with session(overlapped(bundle), bundle) as opened:
        return script(opened)


SCRIPTS: dict[str, Script] = {"talk": talk, "whole": whole}


def slow(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Calls of the stream take a random while longer."""
    rng = np.random.default_rng(seed)
    for name in ("denoise", "context", "decode", "encode_video"):
        call: Callable[..., Any] = getattr(OnnxRuntimeStream, name)

        def late(*args: Any, call: Callable[..., Any] = call) -> Any:
            time.sleep(float(rng.choice([0, 0, 0.004])))
            return call(*args)

        monkeypatch.setattr(OnnxRuntimeStream, name, late)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCRIPTS)
def test_frames_are_those_of_one_lane(
    bundle: Bundle, expected: dict[str, Result], name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed:
        slow(monkeypatch, seed)
    run(bundle, SCRIPTS[name]).same(expected[name])


def test_the_lanes_do_overlap(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass waits for a decoder that is running at the time: on one lane this would never end."""
    decode, denoise = OnnxRuntimeStream.decode, OnnxRuntimeStream.denoise
    decoding, met = threading.Event(), threading.Event()

    def slow_decode(self: Any, *args: Any) -> Any:
        decoding.set()
        met.wait(20)
        return decode(self, *args)

    def meet(self: Any, *args: Any) -> Any:
        if decoding.is_set():
            met.set()
        return denoise(self, *args)

    monkeypatch.setattr(OnnxRuntimeStream, "decode", slow_decode)
    monkeypatch.setattr(OnnxRuntimeStream, "denoise", meet)
    with session(overlapped(bundle), bundle) as opened:
        opened.push_audio(noise(60 * FRAME), RATE)
        opened.flush()
        assert len(list(opened)) == 60
    assert met.is_set()


@pytest.mark.parametrize("kept", ["video_encoder", "video_decoder"])
def test_a_memory_that_is_not_taken_back_would_show(
    bundle: Bundle, expected: dict[str, Result], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    retract = OnnxRuntimeStream.retract

    def half(self: Any, *, encoded: bool) -> None:
        retract(self, encoded=encoded)
        self._memory[kept].swap()

    monkeypatch.setattr(OnnxRuntimeStream, "retract", half)
    with pytest.raises(AssertionError):
        run(bundle, talk).same(expected["talk"])


def test_a_sink_that_is_kept_twice_would_show(
    bundle: Bundle, expected: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = OnnxRuntimeStream.begin_chunk

    def again(self: Any, chunk: int) -> None:
        self._ring._begun = -1
        begin(self, chunk)

    monkeypatch.setattr(OnnxRuntimeStream, "begin_chunk", again)
    with pytest.raises(AssertionError):
        run(bundle, talk).same(expected["talk"])


@pytest.mark.parametrize("call", ["encode_video", "denoise", "decode", "context"])
def test_an_error_on_a_lane_ends_the_session(bundle: Bundle, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Any] = getattr(OnnxRuntimeStream, call)
    calls = iter(range(10_000))

    def fails(*args: Any) -> Any:
        if next(calls) >= 4:
            raise MemoryError("planted")
        return right(*args)

    monkeypatch.setattr(OnnxRuntimeStream, call, fails)
    with session(overlapped(bundle), bundle) as opened:
        opened.push_audio(noise(12 * CHUNKS * FRAME), RATE)
        with pytest.raises(MemoryError, match="planted"):
            list(opened)
        with pytest.raises(SessionClosedError, match="MemoryError"):
            opened.push_audio(noise(10), RATE)
    assert not lanes(patience=10)


def test_closing_leaves_no_thread(bundle: Bundle) -> None:
    opened = session(overlapped(bundle), bundle)
    opened.push_audio(noise(80 * FRAME), RATE)
    next(iter(opened))
    assert lanes()
    opened.close()
    assert not lanes(patience=10)


def lanes(patience: float = 0) -> list[str]:
    """Threads of lanes that there are, still after `patience` seconds."""
    names = ("lipstream-passes", "lipstream-decode")
    end = time.monotonic() + patience
    while (found := [t.name for t in threading.enumerate() if t.name.startswith(names)]) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def test_an_engine_with_two_threads_overlaps_and_gives_the_frames_of_steps(
    speaker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads inside a graph are the same in both: those alone may change a last bit."""
    found = []
    engine = LipSyncEngine.load("tiny", threads=2)

    def steps() -> SteppedChunks:
        return SteppedChunks(engine.manifest, engine.open_stream(), engine._latent_mask)

    for overlaps in (True, False):
        if not overlaps:
            monkeypatch.setattr(engine, "_open_chunks", steps)
        with engine.session(speaker) as opened:
            assert isinstance(opened._chunks, OverlappedChunks) == overlaps
            opened.push_audio(noise(2 * RATE), RATE)
            opened.flush()
            found.append(np.stack([frame.image for frame in opened]))
    np.testing.assert_array_equal(*found)
