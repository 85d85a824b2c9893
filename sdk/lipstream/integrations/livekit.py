"""A face for LiveKit agents: `LipSyncVideo` is the `VideoGenerator` of an `AvatarRunner`. Needs `lipstream[livekit]`.

Written for and tested with livekit-agents 1.8. In one process with the agent (examples/livekit_avatar.py), or, where
there is a GPU, in a process of its own that joins the rooms of many agents, each by `speak_in`
(examples/livekit_rooms.py): agents run a process for each job, and each would load an engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioSegmentEnd,
    AvatarOptions,
    AvatarRunner,
    DataStreamAudioReceiver,
    VideoGenerator,
)

from ..engine import LipSyncEngine
from ..media import FPS, to_int16
from ..session import Idle, PreparedReference, RealtimePlayer

MAX_PENDING = 600.0
"""Seconds of sound that may wait: an agent's whole answer arrives at once, faster than it is spoken."""


class LipSyncVideo(VideoGenerator):
    """Speaks what it is pushed through the face in `reference`, and idles in between. One for each room.

    Each frame of speech comes as its picture and then its sound, an idle one as a picture alone, and the end of each
    segment as `AudioSegmentEnd`: without it the runner never says that playback has finished.

    Args:
        engine: shared by all rooms of a process. sample_rate: of the agent's speech, Hz. Make it on the event loop that
            the runner is on, and `aclose` it.
    """

    def __init__(
        self,
        engine: LipSyncEngine,
        reference: PreparedReference,
        *,
        sample_rate: int = 24000,
        idle: Idle = "closed",
        seed: int = 42,
    ) -> None:
        width, height = reference.size
        self.options = AvatarOptions(
            video_width=width, video_height=height, video_fps=FPS, audio_sample_rate=sample_rate, audio_channels=1
        )
        self._session = engine.session(reference, idle=idle, seed=seed, max_pending=MAX_PENDING)
        self._player = RealtimePlayer(self._session, paced=False)  # the runner keeps the time

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Speech of any length, or the end of a segment. Never waits."""
        if isinstance(frame, AudioSegmentEnd):
            self._session.flush()
            return
        pcm = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
        self._session.push_audio(
            pcm.mean(axis=1).astype(np.int16) if frame.num_channels > 1 else pcm, frame.sample_rate
        )

    def clear_buffer(self) -> None:
        """An interruption: nothing more of what was pushed is spoken. What the runner holds already still plays."""
        self._session.interrupt()

    async def _stream(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        async for frame in self._player:
            height, width = frame.image.shape[:2]
            yield rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, frame.image.tobytes())
            if frame.idle:
                continue
            pcm = to_int16(frame.audio[:, 0])
            yield rtc.AudioFrame(pcm.tobytes(), self.options.audio_sample_rate, 1, len(pcm))
            if frame.end_of_segment:
                yield AudioSegmentEnd()

    def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        return self._stream()

    async def aclose(self) -> None:
        """End the session."""
        self._player.close()


async def speak_in(
    room: rtc.Room,
    engine: LipSyncEngine,
    reference: PreparedReference,
    *,
    agent: str | None = None,
    sample_rate: int = 24000,
    idle: Idle = "closed",
    seed: int = 42,
) -> None:
    """Be the face of an agent in another process, until it leaves the room or the room is lost.

    The agent speaks by a `DataStreamAudioOutput`, which sends its sound over the room. Cancel it to leave sooner.

    Args:
        room: connected, by a token with the attribute `lk.publish_on_behalf`. agent: its identity; None for the first
            agent that is there. sample_rate, idle, seed: as of `LipSyncVideo`; the agent's sound has to have that rate.
    """
    left = asyncio.Event()

    def gone(*_: object) -> None:
        there = room.remote_participants.values()
        kind = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        if not room.isconnected() or not any(x.identity == agent if agent else x.kind == kind for x in there):
            left.set()

    video = LipSyncVideo(engine, reference, sample_rate=sample_rate, idle=idle, seed=seed)
    sound = DataStreamAudioReceiver(room, sender_identity=agent)
    runner = AvatarRunner(room, audio_recv=sound, video_gen=video, options=video.options)
    room.on("participant_disconnected", gone)
    room.on("disconnected", gone)
    waiting = asyncio.ensure_future(left.wait())
    running: asyncio.Future[None] | None = None
    try:
        await runner.start()  # waits for the agent
        running = asyncio.ensure_future(runner.wait_for_complete())
        done, _ = await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if running in done:
            running.result()
    finally:
        room.off("participant_disconnected", gone)
        room.off("disconnected", gone)
        waiting.cancel()
        await video.aclose()
        await runner.aclose()
        if running is not None:
            await asyncio.gather(running, return_exceptions=True)
