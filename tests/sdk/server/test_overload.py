"""A session that generates too slowly: sound on time, pictures skipped; in virtual time, so nothing is measured."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from lipstream.errors import BackpressureError, SlowClientError
from lipstream.server import realtime_session
from lipstream.server.protocol import Start
from lipstream.server.realtime_session import FIRST_LATE, RealtimeSession
from lipstream.server.settings import Settings
from lipstream.server.state import State
from lipstream.session import Frame
from virtual_time import SlowSession, run


class Engine:
    def __init__(self, session: SlowSession) -> None:
        self._session = session

    def session(self, *_: Any, **__: Any) -> SlowSession:
        return self._session


class Client:
    """Attributes: sent: (time, sample, picture) of every frame; at: stamps; said: messages."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, int, bool]] = []
        self.at: list[int] = []
        self.indices: list[int] = []
        self.said: list[dict[str, Any]] = []

    async def send_message(self, message: dict[str, Any]) -> None:
        self.said.append(message)

    async def send_frame(self, frame: Frame, at: int, picture: bool) -> None:
        now = asyncio.get_running_loop().time()
        self.sent.append((now, round(float(frame.audio[0, 0]) * 32768), picture))
        self.at.append(at)
        self.indices.append(frame.index)

    def degraded(self) -> list[bool]:
        return [message["degraded"] for message in self.said if message["type"] == "degraded"]


class Metrics:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def observe(self, name: str, seconds: float) -> None:
        pass


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(realtime_session, "RealtimePlayer", lambda session, paced: session)

    def open_session() -> tuple[SlowSession, Client, RealtimeSession, Metrics]:
        slow, client, metrics = SlowSession(), Client(), Metrics()
        start = Start.model_construct(type="start", sample_rate=25, channels=1, idle="closed", seed=1)
        live = RealtimeSession(Engine(slow), slow, start, client, metrics)  # type: ignore[arg-type]
        return slow, client, live, metrics

    return open_session


def pcm(first: int, count: int) -> bytes:
    return np.arange(first, first + count, dtype="<i2").tobytes()


async def play(live: RealtimeSession, seconds: float) -> None:
    running = asyncio.ensure_future(live.run())
    await asyncio.sleep(seconds)
    live.close()
    await running


@pytest.mark.parametrize("chunk_seconds", [0.6, 0.8, 2.0])
def test_sound_stays_on_time_and_pictures_are_skipped(opened: Any, chunk_seconds: float) -> None:
    async def talk() -> None:
        slow, client, live, metrics = opened()
        slow.chunk_seconds = chunk_seconds
        running = asyncio.ensure_future(play(live, 60))
        await asyncio.sleep(3)
        begun = asyncio.get_running_loop().time()
        live.push(pcm(1, 1000))  # 40 s
        live.flush()
        await running
        spoken = [(now, sample, picture) for now, sample, picture in client.sent if sample]
        assert [sample for _, sample, _ in spoken] == list(range(1, 1001))  # every sample, once, in order
        most = FIRST_LATE + 1 + 0.1
        assert max(now - begun - (sample - 1) / 25 for now, sample, _ in spoken) < most
        shown = sum(picture for *_, picture in spoken)
        assert 0.3 * 1000 * 0.48 / chunk_seconds < shown < 1000
        assert metrics.counts["pictures_skipped"] == 1000 - shown
        assert client.at == client.indices == list(range(len(client.at)))
        assert [message["segment"] for message in client.said if message["type"] == "segment_end"] == [0]
        assert client.degraded()[0]

    run(talk())


def test_a_session_that_catches_up_is_no_longer_degraded(opened: Any) -> None:
    async def talk() -> None:
        slow, client, live, _ = opened()
        state = State(Settings(), metrics=None, most=2, live={"a": live})  # type: ignore[arg-type]
        running = asyncio.ensure_future(play(live, 70))
        await asyncio.sleep(1)
        assert state.ready
        assert state.refusal() is None
        slow.chunk_seconds = 1.0
        live.push(pcm(1, 1200))
        await asyncio.sleep(20)
        assert client.degraded() == [True]
        assert not state.ready
        refusal = state.refusal()
        assert refusal is not None
        assert (refusal.code, refusal.label) == ("unavailable", "overload")
        slow.chunk_seconds = 0.1
        await asyncio.sleep(20)
        assert client.degraded() == [True, False]
        assert state.ready
        assert state.refusal() is None
        assert all(picture for *_, picture in client.sent[-100:])
        await running

    run(talk())


def test_live_speech_on_a_slow_server_is_not_delayed_more_and_more(opened: Any) -> None:
    async def talk() -> None:
        slow, client, live, _ = opened()
        slow.chunk_seconds = 0.8
        running = asyncio.ensure_future(play(live, 70))
        said: dict[int, float] = {}
        for sample in range(1, 1501):
            said[sample] = asyncio.get_running_loop().time()
            live.push(pcm(sample, 1))
            await asyncio.sleep(0.04)
        await running
        spoken = [(now, sample, picture) for now, sample, picture in client.sent if sample]
        assert [sample for _, sample, _ in spoken] == list(range(1, len(spoken) + 1))
        assert max(now - said[sample] for now, sample, _ in spoken) < 5
        assert sum(picture for *_, picture in spoken) > 200

    run(talk())


def test_a_session_in_time_is_not_degraded(opened: Any) -> None:
    async def talk() -> None:
        slow, client, live, metrics = opened()
        slow.chunk_seconds = 0.4  # of 0.48
        running = asyncio.ensure_future(play(live, 60))
        for first in range(1, 1000, 250):  # idles in between
            await asyncio.sleep(3)
            live.push(pcm(first, 250))
            live.flush()
            await asyncio.sleep(12)
        await running
        assert client.degraded() == []
        assert "pictures_skipped" not in metrics.counts
        assert all(picture for *_, picture in client.sent)

    run(talk())


def test_an_interrupt_ends_skipping(opened: Any) -> None:
    async def talk() -> None:
        slow, client, live, _ = opened()
        slow.chunk_seconds = 3.0
        running = asyncio.ensure_future(play(live, 60))
        await asyncio.sleep(4)
        live.push(pcm(1, 1000))
        await asyncio.sleep(20)
        assert not client.sent[-1][2]
        live.interrupt()
        count = len(client.sent)
        slow.chunk_seconds = 0.1
        await asyncio.sleep(10)
        assert all(picture and not sample for _, sample, picture in client.sent[count:])
        live.push(pcm(2001, 100))
        live.flush()
        await running
        assert [sample for _, sample, _ in client.sent[count:] if sample] == list(range(2001, 2101))

    run(talk())


def test_a_frame_that_arrives_with_an_interrupt_is_not_sent(opened: Any) -> None:
    """The event loop runs the interrupt between the frame's arrival and its turn to be queued."""

    async def talk() -> None:
        slow, client, live, _ = opened()
        slow.chunk_seconds = 0.6
        running = asyncio.ensure_future(play(live, 30))
        await asyncio.sleep(4.5)
        live.push(pcm(1, 100))
        while not (slow._segments and live._coming._task and not live._coming._task.done()):
            await asyncio.sleep(0.01)
        live._coming._task.add_done_callback(lambda _: live.interrupt())
        while "interrupted" not in [message["type"] for message in client.said]:
            await asyncio.sleep(0.01)
        live.push(pcm(2001, 100))
        live.flush()
        await running
        assert [sample for _, sample, _ in client.sent if sample] == list(range(2001, 2101))

    run(talk())


def test_idle_sessions_show_an_overload_too(opened: Any) -> None:
    async def talk() -> None:
        slow, client, live, _ = opened()
        slow.chunk_seconds = 1.0
        await play(live, 30)
        assert client.degraded() == [True]

    run(talk())


def test_answers_of_any_length_are_taken_from_clients_that_pause(opened: Any) -> None:
    async def talk() -> None:
        _, client, live, _ = opened()
        running = asyncio.ensure_future(play(live, 260))
        await asyncio.sleep(1)
        for first in range(1, 5001, 25):  # 200 s at once, but for the pauses
            while [m["type"] for m in client.said if m["type"] in ("pause", "resume")][-1:] == ["pause"]:
                await asyncio.sleep(0.1)
            live.push(pcm(first, 25))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        live.flush()
        await running
        assert [sample for _, sample, _ in client.sent if sample] == list(range(1, 5001))
        assert "pause" in [message["type"] for message in client.said]

    run(talk())


def test_a_client_that_does_not_pause_is_told_so_in_its_own_words(opened: Any) -> None:
    async def talk() -> None:
        _, client, live, _ = opened()
        running = asyncio.ensure_future(play(live, 100))
        await asyncio.sleep(1)
        live.push(pcm(1, 1500))
        with pytest.raises(BackpressureError) as raised:
            live.push(pcm(1501, 1))
        assert "max_pending" not in str(raised.value)
        assert "resume" in raised.value.fix
        live.interrupt()
        await asyncio.sleep(1)
        assert [m["type"] for m in client.said if m["type"] in ("pause", "resume")] == ["pause", "resume"]
        live.push(pcm(1, 1500))
        await running
        assert [sample for _, sample, _ in client.sent if sample] == list(range(1, 1501))

    run(talk())


def test_a_client_that_interrupts_and_does_not_read_is_disconnected(opened: Any) -> None:
    """Interrupts discard the frames by which a slow client is noticed."""

    async def talk() -> None:
        _, client, live, _ = opened()

        async def never(_: Any) -> None:
            await asyncio.Event().wait()

        client.send_message = never
        running = asyncio.ensure_future(live.run())
        await asyncio.sleep(0.1)

        def storm() -> None:
            for _ in range(2 * realtime_session.MOST_QUEUED):
                live.interrupt()

        with pytest.raises(SlowClientError, match="messages are queued"):
            storm()
        live.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(talk())
