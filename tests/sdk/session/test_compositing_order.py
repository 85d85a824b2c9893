"""Frames are handed out one by one, while later ones of their chunk are still composited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from lipstream.backends.base import ChunkInput, ChunkStream, PendingChunk
from lipstream.errors import LipStreamInternalError, SessionClosedError
from lipstream.face import LipStreamFacePipeline
from lipstream.session import Frame, LipSyncSession, RealtimePlayer
from numpy_stream import GEOMETRY, MANIFEST, POOL, SIDE, NumberedReference, open_session

SOUND = np.zeros(16_000 * 4, np.float32)


class Gated:
    """Compositing that waits for `go`, but for the first `free` frames."""

    def __init__(self, free: int) -> None:
        self.go = threading.Event()
        self._free, self._lock = free, threading.Lock()

    def __call__(self, picture: Any, *rest: Any) -> Any:
        with self._lock:
            self._free -= 1
            free = self._free >= 0
        if not free:
            assert self.go.wait(30)
        return picture


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever limit another test of this process has set."""
    monkeypatch.setattr("lipstream.session.pipeline.may_overlap", lambda: True)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    gated = Gated(1)
    monkeypatch.setattr("lipstream.face.compositing.Compositor.composite", lambda self, *args: gated(*args))
    yield gated
    gated.go.set()


def spoken() -> LipSyncSession:
    session = open_session()
    session.push_audio(SOUND, 16_000)
    return session


def test_the_first_frame_does_not_wait_for_the_others(gate: Gated) -> None:
    with spoken() as session:
        frames = iter(session)
        assert next(frames).index == 0
        gate.go.set()
        assert [frame.index for frame in frames] == [*range(1, 93)]


def test_on_an_event_loop_too(gate: Gated) -> None:
    async def take(session: LipSyncSession) -> list[int]:
        found: list[int] = []

        async def read() -> None:
            async for frame in session:
                found.append(frame.index)

        reading = asyncio.ensure_future(read())
        while not found:
            await asyncio.sleep(0.001)
        assert found == [0]
        reading.cancel()  # while it waits for the second frame, which is not lost
        await asyncio.wait([reading])
        gate.go.set()
        await read()
        return found

    with spoken() as session:
        assert asyncio.run(take(session)) == [*range(93)]


def test_an_interrupt_discards_frames_that_are_composited(gate: Gated) -> None:
    with spoken() as session:
        frames = iter(session)
        assert next(frames).index == 0
        waiting: list[Any] = []
        reader = threading.Thread(target=lambda: waiting.append(next(frames, None)))
        reader.start()
        session.interrupt()
        reader.join(30)
        assert waiting == [None]  # nothing is left to wait for
        gate.go.set()
        session.push_audio(SOUND, 16_000)
        assert next(iter(session)).index == 1


def test_what_compositing_raises_reaches_the_consumer_and_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *arguments: Any) -> Any:
        raise LipStreamInternalError("not finite")

    monkeypatch.setattr("lipstream.face.compositing.Compositor.composite", fail)
    session = spoken()
    with pytest.raises(LipStreamInternalError, match="not finite"):
        next(iter(session))
    with pytest.raises(SessionClosedError, match="LipStreamInternalError"):
        session.push_audio(SOUND, 16_000)

    async def play() -> None:
        async for _ in RealtimePlayer(spoken()):
            pass

    with pytest.raises(LipStreamInternalError, match="not finite"):
        asyncio.run(play())


class TwoBuffers(ChunkStream):
    """As a GPU's: pictures of chunk k are in memory that chunk k + 2 is generated into, from its start on."""

    ahead = True
    composites = False

    def __init__(self) -> None:
        self._memory = [np.zeros((12, SIDE, SIDE, 3), np.float32) for _ in range(2)]

    def start(self, chunk: ChunkInput, timed: Any) -> PendingChunk:
        memory = self._memory[chunk.number % 2]
        memory[:] = np.nan  # half written
        return _Pending(memory, chunk)

    def encode_video(self, crops: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


class _Pending(PendingChunk):
    def __init__(self, memory: Any, chunk: ChunkInput) -> None:
        self._memory, self._chunk = memory, chunk

    def crops(self) -> Any:
        self._memory[:] = self._chunk.number % 16 / 16
        return self._memory[self._chunk.missing :]

    def drop(self) -> None: ...


def test_a_chunk_is_composited_before_its_memory_is_used_again() -> None:
    face = LipStreamFacePipeline(GEOMETRY, np.zeros((SIDE, SIDE), np.float32))
    slow = threading.Event()
    composite = face.composite

    def late(*arguments: Any) -> Any:
        slow.wait(0.005)
        return composite(*arguments)

    face.composite = late
    session = LipSyncSession(MANIFEST, TwoBuffers(), NumberedReference(), face, POOL)

    async def play() -> list[Frame]:
        frames: list[Frame] = []
        async with RealtimePlayer(session, paced=False) as player:
            session.push_audio(SOUND, 16_000)
            async for frame in player:  # generates ahead of what is taken
                frames.append(frame)
                if len(frames) == 93:
                    return frames
        return frames

    assert [frame.index for frame in asyncio.run(play())] == [*range(93)]
