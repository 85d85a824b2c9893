"""The player: the session's frames, never early, until it is closed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from lipstream import RealtimePlayer
from lipstream.errors import SessionClosedError
from lipstream.session import Frame
from numpy_stream import NumpyStream, OpenSession, assert_same_frames, noise, open_session, speak

RATE, FRAME = 16_000, 640
PATIENCE = 60.0
"""Seconds after which a test is said to hang."""


def run(main: Coroutine[Any, Any, list[Frame]]) -> list[Frame]:
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


async def until_segment_ends(player: RealtimePlayer) -> list[Frame]:
    frames: list[Frame] = []
    async for frame in player:
        frames.append(frame)
        if frame.end_of_segment:
            break
    player.close()
    return frames


def test_frames_are_those_of_the_session() -> None:
    sound = noise(70 * FRAME)

    async def main() -> list[Frame]:
        player = RealtimePlayer(open_session(), paced=False)
        for start in range(0, len(sound), 3000):
            player.session.push_audio(sound[start : start + 3000], RATE)
            await asyncio.sleep(0.001)
        player.session.flush()
        return await until_segment_ends(player)

    assert_same_frames(run(main()), speak(open_session(), sound))


def test_no_frame_comes_before_it_is_due() -> None:
    async def main() -> list[Frame]:
        loop = asyncio.get_running_loop()
        player = RealtimePlayer(open_session(idle="closed"))
        begun, count = loop.time(), 0
        async for frame in player:
            assert loop.time() - begun >= count / 25 - 0.001
            assert player.lateness >= 0
            count += 1
            if count == 15:
                player.close()
                return [frame]
        return []

    assert run(main())[0].index == 14


def test_an_interrupt_discards_what_was_generated_ahead() -> None:
    follow = noise(20 * FRAME, seed=3)

    async def main() -> list[Frame]:
        player = RealtimePlayer(open_session(), paced=False)
        player.session.push_audio(noise(60 * FRAME), RATE)
        played = aiter(player)
        before = [await anext(played) for _ in range(5)]
        assert player.session.interrupt(unshown=2) == 3 / 25
        player.session.push_audio(follow, RATE)
        player.session.flush()
        return before[:3] + await until_segment_ends(player)

    frames = run(main())
    assert [frame.index for frame in frames] == list(range(23))
    np.testing.assert_array_equal(np.concatenate([frame.audio for frame in frames[3:]])[:, 0], follow)


@pytest.mark.parametrize("audio", [0, 30])
def test_closing_ends_a_player_that_waits(audio: int) -> None:
    async def main() -> list[Frame]:
        player = RealtimePlayer(open_session())
        if audio:
            player.session.push_audio(noise(audio * FRAME), RATE)
        asyncio.get_running_loop().call_later(0.05, player.close)
        return [frame async for frame in player]

    assert len(run(main())) <= audio


def test_an_error_of_the_generation_reaches_the_consumer() -> None:
    class Failing(NumpyStream):
        def decode(self, latent: Any) -> Any:
            raise RuntimeError("in the decoder")

    async def main() -> list[Frame]:
        player = RealtimePlayer(OpenSession(stream=Failing()).session)
        player.session.push_audio(noise(30 * FRAME), RATE)
        with pytest.raises(RuntimeError, match="in the decoder"):
            await anext(aiter(player))
        with pytest.raises(SessionClosedError, match="RuntimeError"):
            player.session.flush()
        return []

    run(main())


def test_a_consumer_that_stops_does_not_stop_another() -> None:
    async def main() -> list[Frame]:
        player = RealtimePlayer(open_session(), paced=False)
        first, second = (asyncio.ensure_future(anext(aiter(player))) for _ in range(2))
        await asyncio.sleep(0.02)  # both wait
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        player.session.push_audio(noise(30 * FRAME), RATE)
        frame = await second
        player.close()
        return [frame]

    assert run(main())[0].index == 0


def test_a_closed_player_leaves_no_thread() -> None:
    async def main() -> list[Frame]:
        opened = OpenSession(idle="closed")
        player = RealtimePlayer(opened.session)
        async for frame in player:
            player.close()
            frames = [frame]
        await asyncio.to_thread(join)
        assert opened.reference.closed
        return frames

    def join() -> None:
        for thread in threading.enumerate():
            if thread.name == "lipstream-ahead":
                thread.join(PATIENCE)
                assert not thread.is_alive()

    assert len(run(main())) == 1


def test_waiting_for_a_time() -> None:
    session = open_session()
    assert not session.wait(0.01)
    session.push_audio(noise(30 * FRAME), RATE)
    assert session.wait(0)
    assert len(list(session)) == 21
    assert not session.wait(0)
    session.close()
    assert not session.wait()


def test_the_with_block_closes_player_and_session() -> None:
    async def fail(player: RealtimePlayer) -> None:
        async for _ in player:
            raise KeyError

    async def main() -> list[Frame]:
        with pytest.raises(KeyError), RealtimePlayer(open_session(idle="closed")) as player:
            await fail(player)
        with pytest.raises(SessionClosedError):
            player.session.flush()
        return [frame async for frame in player]

    assert run(main()) == []


def test_an_async_with_block_closes_session_player_and_thread() -> None:
    async def main() -> list[Frame]:
        async with open_session() as session:
            session.push_audio(noise(30 * FRAME), RATE)
        with pytest.raises(SessionClosedError):
            session.flush()
        async with RealtimePlayer(open_session(idle="closed")) as player:
            frame = await anext(aiter(player))
        assert not running()
        with pytest.raises(SessionClosedError):
            player.session.flush()
        return [frame]

    assert len(run(main())) == 1


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lipstream-ahead"]


def test_close_waits_for_the_thread_but_not_on_an_event_loop() -> None:
    started, proceed = threading.Event(), threading.Event()

    class Waiting(NumpyStream):
        def decode(self, latent: Any) -> Any:
            started.set()
            proceed.wait(PATIENCE)
            return super().decode(latent)

    async def main() -> list[Frame]:
        player.session.push_audio(noise(30 * FRAME), RATE)
        assert await asyncio.to_thread(started.wait, PATIENCE)
        player.close()
        assert len(running()) == 1
        proceed.set()
        return []

    player = RealtimePlayer(OpenSession(stream=Waiting()).session)
    run(main())
    player.close()
    assert not running()


def test_the_thread_ends_when_the_player_is_collected() -> None:
    player = RealtimePlayer(open_session(idle="closed"))
    (thread,) = running()
    session = player.session
    del player
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    with pytest.raises(SessionClosedError):
        session.flush()


def test_a_player_may_be_made_outside_the_loop_that_plays_it() -> None:
    async def main() -> list[Frame]:
        return [await anext(played) for played in [aiter(player)] for _ in range(30)]

    with RealtimePlayer(open_session(idle="closed"), paced=False) as player:
        indices = [frame.index for _ in range(2) for frame in run(main())]
    assert indices == list(range(60))
