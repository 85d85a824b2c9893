"""One engine, two rooms, each with an agent in another process: LiveKit's own streams and calls over rooms in memory.

The first agent is interrupted and speaks again, while the second one speaks; then both leave. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.append(os.environ["BESIDE"])
import lipstream
from lipstream import LipSyncEngine
from lipstream.integrations import livekit as ours
from livekit import rtc
from livekit.agents.voice.avatar import AvatarRunner, DataStreamAudioOutput
from livekit_script import RATE, tone


class Stream:
    """A byte stream: what is written can be read."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self.info = SimpleNamespace(attributes=attributes, stream_id="stream")
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def write(self, data: bytes) -> None:
        await self._parts.put(data)

    async def aclose(self) -> None:
        await self._parts.put(None)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if (part := await self._parts.get()) is None:
            raise StopAsyncIteration
        return part


class Participant:
    """The local one of a room in memory."""

    def __init__(self, room: Room, identity: str) -> None:
        self.identity, self.kind, self.state = identity, rtc.ParticipantKind.PARTICIPANT_KIND_AGENT, 2
        self._room = room
        self._rpc_handlers: dict[str, Callable[[Any], str]] = {}

    def register_rpc_method(self, name: str, handler: Callable[[Any], str]) -> None:
        self._rpc_handlers[name] = handler

    async def perform_rpc(self, *, destination_identity: str, method: str, payload: str) -> str:
        await asyncio.sleep(0)
        there = self._room.other.local_participant
        assert there.identity == destination_identity
        data = rtc.RpcInvocationData("1", self.identity, payload, 10.0)
        if method not in there._rpc_handlers:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, method)
        return there._rpc_handlers[method](data)

    async def stream_bytes(self, *, attributes: dict[str, str], topic: str, **_: Any) -> Stream:
        stream = Stream(attributes)
        self._room.other.streams[topic](stream, self.identity)
        return stream


class Room(rtc.EventEmitter[str]):
    """The room from the view of one of two participants."""

    other: Room

    def __init__(self, identity: str) -> None:
        super().__init__()
        self.local_participant = Participant(self, identity)
        self.remote_participants: dict[str, Participant] = {}
        self.streams: dict[str, Callable[[Stream, str], None]] = {}

    def isconnected(self) -> bool:
        return True

    def register_byte_stream_handler(self, topic: str, handler: Callable[[Stream, str], None]) -> None:
        self.streams[topic] = handler


def pair(number: int) -> tuple[Room, Room]:
    """The room from the views of the agent and of the face."""
    agent, face = Room(f"agent-{number}"), Room(f"face-{number}")
    agent.other, face.other = face, agent
    agent.remote_participants[face.local_participant.identity] = face.local_participant
    face.remote_participants[agent.local_participant.identity] = agent.local_participant
    return agent, face


class Runner(AvatarRunner):
    """Publishes nothing: there is no server."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._video_publication = object()


async def say(output: DataStreamAudioOutput, seconds: float) -> None:
    for frame in tone(seconds):
        await output.capture_frame(frame)
    output.flush()


async def until(enough: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not enough():
            await asyncio.sleep(0.02)


async def main() -> None:
    ours.AvatarRunner = Runner
    engine = LipSyncEngine.load("tiny", threads=1)
    engine.warmup()
    face = engine.prepare(Path(lipstream.__file__).parent / "sample" / "face.mp4", seconds=2)
    agents, faces, outputs, finished = [], [], [], []
    for number in range(2):
        agent, there = pair(number)
        faces.append(asyncio.create_task(ours.speak_in(there, engine, face, agent=f"agent-{number}", sample_rate=RATE)))
        await until(lambda there=there: "lk.audio_stream" in there.streams)
        output = DataStreamAudioOutput(agent, destination_identity=f"face-{number}", sample_rate=RATE)
        events: list[dict[str, Any]] = []
        output.on(
            "playback_finished",
            lambda e, events=events: events.append({"position": e.playback_position, "interrupted": e.interrupted}),
        )
        agents.append(there)
        outputs.append(output)
        finished.append(events)
    await asyncio.gather(say(outputs[0], 4.0), say(outputs[1], 3.0))
    await asyncio.sleep(1.5)
    outputs[0].clear_buffer()
    await until(lambda: len(finished[0]) == 1)
    await say(outputs[0], 2.0)
    await until(lambda: len(finished[0]) == 2 and len(finished[1]) == 1)
    for there in agents:  # the agents leave
        (gone,) = there.remote_participants.values()
        there.remote_participants.clear()
        there.emit("participant_disconnected", gone)
    await asyncio.wait_for(asyncio.gather(*faces), 10)
    await asyncio.sleep(1)
    left = sum(t.name.startswith("lipstream-ahead") for t in threading.enumerate())
    print(json.dumps({"finished": finished, "threads_left": left}))


if __name__ == "__main__":
    asyncio.run(main())
