"""A session used by threads and tasks: no deadlock, no frame lost, no frame repeated."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from lipstream.errors import BackpressureError, SessionClosedError
from lipstream.session import Frame, LipSyncSession
from numpy_stream import NumpyStream, OpenSession, assert_same_frames, noise, open_session, speak

PATIENCE = 30.0
"""Seconds after which a call counts as hanging."""


@contextmanager
def running(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """`work` in another thread; yields a function that waits for its result, or raises what it raised."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield lambda: future.result(PATIENCE)


class Gated(NumpyStream):
    """Blocks in every `denoise` call until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on = threading.Event(), threading.Event()

    def denoise(self, *args: Any) -> Any:
        self.inside.set()
        assert self.go_on.wait(PATIENCE)
        return super().denoise(*args)

    def enter(self) -> None:
        assert self.inside.wait(PATIENCE)

    def leave(self) -> None:
        self.inside.clear()
        self.go_on.set()


def push_in_pieces(session: LipSyncSession, pcm: np.ndarray[Any, Any], piece: int = 2000) -> None:
    for start in range(0, len(pcm), piece):
        while True:
            try:
                session.push_audio(pcm[start : start + piece], 16_000)
                break
            except BackpressureError:
                threading.Event().wait(0.002)
    session.flush()


def until_end(session: LipSyncSession) -> list[Frame]:
    """The frames up to the end of the segment, or of the session, waiting for them."""
    frames: list[Frame] = []
    while session.wait():
        for frame in session:
            frames.append(frame)
            if frame.end_of_segment:
                return frames
    return frames


def test_a_pushing_thread_and_a_waiting_one() -> None:
    pcm = noise(90 * 640)
    session = open_session(max_pending=1)
    with running(lambda: push_in_pieces(session, pcm)) as pushed:
        frames = until_end(session)
        pushed()
    assert_same_frames(frames, speak(open_session(), pcm))


def test_sessions_in_separate_threads() -> None:
    voices = [noise(60 * 640, seed=k) for k in range(4)]
    expected = [speak(open_session(seed=k), voice) for k, voice in enumerate(voices)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda k: speak(open_session(seed=k), voices[k], cuts=(999,)), range(4), timeout=PATIENCE)
        for a, b in zip(found, expected, strict=True):
            assert_same_frames(a, b)


def test_two_threads_that_iterate_share_the_frames() -> None:
    session = open_session()
    session.push_audio(noise(80 * 640), 16_000)
    session.flush()
    with running(lambda: list(session)) as rest:
        here = list(session)
        there = rest()
    assert sorted(frame.index for frame in here + there) == list(range(80))


def test_interrupt_during_generation_discards_the_chunk() -> None:
    stream = Gated()
    session = OpenSession(stream=stream).session
    session.push_audio(noise(30 * 640), 16_000)
    with running(lambda: list(session)) as taken:
        stream.enter()
        assert session.interrupt() == 0
        stream.leave()
        assert taken() == []
    follow = noise(5 * 640, seed=3)
    frames = speak(session, follow)
    assert [frame.index for frame in frames] == list(range(5))
    np.testing.assert_array_equal(np.concatenate([frame.audio for frame in frames])[:, 0], follow)
    assert ("begin", 1) in stream.calls


def test_interrupt_and_a_new_push_during_generation() -> None:
    stream = Gated()
    session = OpenSession(stream=stream).session
    session.push_audio(noise(30 * 640), 16_000)
    follow = noise(20 * 640, seed=3)
    with running(lambda: until_end(session)) as taken:
        stream.enter()
        session.interrupt()
        session.push_audio(follow, 16_000)
        session.flush()
        stream.leave()
        frames = taken()
    assert [frame.index for frame in frames] == list(range(20))
    np.testing.assert_array_equal(np.concatenate([frame.audio for frame in frames])[:, 0], follow)


@pytest.mark.parametrize("seed", range(4))
def test_pushes_flushes_and_interruptions_at_random_from_another_thread(seed: int) -> None:
    session, rng = open_session(max_pending=1), np.random.default_rng(seed)
    frames: list[Frame] = []

    def take() -> None:
        with suppress(SessionClosedError):
            while session.wait():
                for frame in session:
                    frames.append(frame)

    with running(take) as done:
        for _ in range(150):
            action = rng.random()
            if action < 0.8:
                with suppress(BackpressureError):
                    session.push_audio(noise(int(rng.integers(0, 4000))), 16_000)
            elif action < 0.9:
                session.flush()
            else:
                session.interrupt()
            threading.Event().wait(0.001 * rng.random())
        before = round(25 * session.interrupt())
        last = noise(20 * 640)
        session.push_audio(last, 16_000)
        session.flush()
        while len(frames) < before + 20:  # however slow the machine is
            threading.Event().wait(0.002)
        session.close()
        done()
    assert [frame.index for frame in frames] == list(range(before + 20))
    assert [frame.pts for frame in frames] == [i / 25 for i in range(len(frames))]
    assert all(len(frame.audio) == 640 for frame in frames)
    np.testing.assert_array_equal(np.concatenate([frame.audio for frame in frames[-20:]])[:, 0], last)
    assert frames[-1].end_of_segment


def test_close_wakes_a_waiting_thread() -> None:
    session = open_session()
    session.push_audio(noise(640), 16_000)
    with running(lambda: until_end(session)) as taken:
        threading.Event().wait(0.05)
        session.close()
        assert taken() == []


def test_close_during_generation_waits_for_it_and_drops_it() -> None:
    stream = Gated()
    opened = OpenSession(stream=stream)
    opened.session.push_audio(noise(30 * 640), 16_000)
    with running(lambda: list(opened.session)) as taken:
        stream.enter()
        closing = threading.Thread(target=opened.session.close)
        closing.start()
        assert not opened.session.wait(PATIENCE)
        assert not opened.reference.closed  # the generating thread still reads from it
        stream.leave()
        assert taken() == []
    closing.join(PATIENCE)
    assert opened.reference.closed


def test_close_from_within_generation_as_a_signal_handler_would() -> None:
    class Closing(NumpyStream):
        def denoise(self, *args: Any) -> Any:
            opened.session.close()
            return super().denoise(*args)

    opened = OpenSession(stream=Closing())
    opened.session.push_audio(noise(30 * 640), 16_000)
    with running(lambda: list(opened.session)) as taken:
        assert taken() == []


def test_an_error_wakes_the_other_threads() -> None:
    class Failing(Gated):
        def denoise(self, *args: Any) -> Any:
            super().denoise(*args)
            raise RuntimeError("half a chunk is done")

    stream = Failing()
    session = OpenSession(stream=stream).session
    session.push_audio(noise(30 * 640), 16_000)
    with running(lambda: list(session)) as first:
        stream.enter()
        with running(lambda: until_end(session)) as second:
            stream.leave()
            with pytest.raises(RuntimeError, match="half a chunk"):
                first()
            with suppress(SessionClosedError):  # if it asks for its first frame after the error
                assert second() == []


async def collect(session: LipSyncSession) -> list[Frame]:
    """The frames up to the end of the segment, or of the session."""
    frames: list[Frame] = []
    while await session.wait_async():
        async for frame in session:
            frames.append(frame)
            if frame.end_of_segment:
                return frames
    return frames


async def iterate(session: LipSyncSession) -> list[Frame]:
    """The frames that are ready."""
    return [frame async for frame in session]


def run(main: Any) -> Any:
    """`asyncio.run` with a time limit, which includes the shutdown of its threads."""
    with running(lambda: asyncio.run(asyncio.wait_for(main, PATIENCE))) as result:
        return result()


class TestAsync:
    def test_one_task_pushes_another_takes(self) -> None:
        pcm = noise(70 * 640)

        async def main() -> list[Frame]:
            session = open_session()
            frames = asyncio.create_task(collect(session))
            for start in range(0, len(pcm), 3000):
                session.push_audio(pcm[start : start + 3000], 16_000)
                await asyncio.sleep(0.001)
            session.flush()
            return await frames

        assert_same_frames(run(main()), speak(open_session(), pcm))

    def test_the_loop_is_free_during_generation(self) -> None:
        stream = Gated()

        async def main() -> list[Frame]:
            session = OpenSession(stream=stream).session
            session.push_audio(noise(6400), 16_000)
            session.flush()
            frames = asyncio.create_task(collect(session))
            while not stream.inside.is_set():
                await asyncio.sleep(0.001)
            stream.leave()
            return await frames

        assert len(run(main())) == 10

    def test_waiting_continues_after_flush_and_interrupt(self) -> None:
        async def main() -> list[Frame]:
            session = open_session()

            async def all_frames() -> list[Frame]:
                frames: list[Frame] = []
                while await session.wait_async():
                    frames += await iterate(session)
                return frames

            frames = asyncio.create_task(all_frames())
            for pcm in (noise(6400), noise(640 * 30), noise(100)):
                session.push_audio(pcm, 16_000)
                session.flush()
                await asyncio.sleep(0.05)
            session.push_audio(noise(640), 16_000)
            session.interrupt()
            session.push_audio(noise(640), 16_000)
            session.flush()
            await asyncio.sleep(0.05)
            assert not frames.done()
            session.close()
            return await frames

        frames = run(main())
        assert [frame.index for frame in frames] == list(range(10 + 30 + 1 + 1))
        assert [frame.segment for frame in frames if frame.end_of_segment] == [0, 1, 2, 4]

    def test_idle_sessions_hold_no_thread(self) -> None:
        """Any number of sessions may wait while another gets its frames, and the loop's own pool is free."""

        async def main() -> None:
            idle = [asyncio.create_task(collect(open_session())) for _ in range(200)]
            await asyncio.sleep(0.02)
            before = threading.active_count()
            session = open_session()
            session.push_audio(noise(6400), 16_000)
            session.flush()
            assert len(await collect(session)) == 10
            assert await asyncio.to_thread(lambda: 5) == 5
            assert threading.active_count() <= before + 3
            for task in idle:
                task.cancel()
            await asyncio.gather(*idle, return_exceptions=True)

        run(main())

    def test_cancelled_while_it_waits_leaves_no_thread_waiting(self) -> None:
        async def main() -> None:
            task = asyncio.create_task(collect(open_session()))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(main())

    def test_a_time_out_loses_no_frame(self) -> None:
        pcm = noise(40 * 640)

        async def main() -> list[Frame]:
            session, frames = open_session(), []
            for start in range(0, len(pcm), 1280):
                session.push_audio(pcm[start : start + 1280], 16_000)
                try:
                    async with asyncio.timeout(0.004):
                        async for frame in session:
                            frames.append(frame)
                except TimeoutError:
                    pass
            session.flush()
            return frames + await collect(session)

        assert_same_frames(run(main()), speak(open_session(), pcm))

    def test_cancelled_during_generation_keeps_the_chunk_for_the_next(self) -> None:
        stream, pcm = Gated(), noise(30 * 640)

        async def main() -> list[Frame]:
            session = OpenSession(stream=stream).session
            session.push_audio(pcm, 16_000)
            session.flush()
            task = asyncio.create_task(collect(session))
            while not stream.inside.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stream.leave()
            return await collect(session)

        assert_same_frames(run(main()), speak(open_session(), pcm))

    def test_close_ends_the_iteration(self) -> None:
        async def main() -> list[Frame]:
            session = open_session()
            task = asyncio.create_task(collect(session))
            await asyncio.sleep(0.02)
            session.close()
            return await task

        assert run(main()) == []

    def test_a_closed_session_raises(self) -> None:
        session = open_session()
        session.close()
        assert run(session.wait_async()) is False
        with pytest.raises(SessionClosedError):
            run(iterate(session))

    def test_an_error_of_the_generation_is_raised(self) -> None:
        class Failing(NumpyStream):
            def decode(self, latent: Any) -> Any:
                raise RuntimeError("in the decoder")

        session = OpenSession(stream=Failing()).session
        session.push_audio(noise(6400), 16_000)
        session.flush()
        with pytest.raises(RuntimeError, match="in the decoder"):
            run(collect(session))
        with pytest.raises(SessionClosedError, match="RuntimeError"):
            run(iterate(session))
