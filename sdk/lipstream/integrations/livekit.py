"""LiveKit adapter: `LipSyncVideo` is the `VideoGenerator` of an `AvatarRunner`. Needs `lipstream[livekit]`.

Written for and tested with livekit-agents 1.8. It runs in the agent's process (examples/livekit_avatar.py) or, with a
GPU, in one separate process that joins the rooms of many agents with `speak_in` (examples/livekit_rooms.py): LiveKit
starts a process for each agent job, and each would load an engine.
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
from ..media import FPS, StreamResampler, to_int16
from ..session import Idle, PreparedReference, RealtimePlayer

MAX_PENDING = 600.0
"""Seconds of pending audio: an agent's whole answer arrives at once, faster than it is spoken."""


class LipSyncVideo(VideoGenerator):
    """Lip-syncs the face in `reference` to the pushed speech, with idle frames in between. Create one for each room.

    Yields a frame of speech as a picture followed by its sound, an idle frame as a picture only, and `AudioSegmentEnd`
    at the end of each segment: without it the runner does not report that playback has finished. Create it on the
    runner's event loop, and call `aclose` at the end.

    Args:
        engine: shared by all rooms of a process. sample_rate: of the sound that is published, Hz; speech of another
            rate is resampled.
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
        self._session = engine.session(
            reference, idle=idle, seed=seed, max_pending=MAX_PENDING, sample_rate=sample_rate
        )
        self._resampler: StreamResampler | None = None  # of the segment, if its rate is another one
        self._player = RealtimePlayer(self._session, paced=False)  # the runner paces the frames

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Push speech of any length, rate and number of channels, or end the segment. Does not block."""
        rate = self.options.audio_sample_rate
        if isinstance(frame, AudioSegmentEnd):
            self._finish_resampling()
            self._session.flush()
            return
        if self._resampler is not None and self._resampler.rate != frame.sample_rate:
            self._finish_resampling()
        pcm = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
        if self._resampler is None and (frame.sample_rate != rate or frame.num_channels > 1):
            self._resampler = StreamResampler(frame.sample_rate, rate)  # mixes to mono, too
        self._session.push_audio(self._resampler.push(pcm) if self._resampler else pcm, rate)

    def _finish_resampling(self) -> None:
        """Push the rest of what is being resampled."""
        resampler, self._resampler = self._resampler, None
        if resampler is not None:
            self._session.push_audio(resampler.flush(), self.options.audio_sample_rate)

    def clear_buffer(self) -> None:
        """Interrupt: discard the speech pushed so far. Frames that the runner has already taken are still played."""
        self._resampler = None
        self._session.interrupt()

    async def _stream(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        async for frame in self._player:
            height, width = frame.image.shape[:2]
            yield rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, frame.image.tobytes())
            if frame.idle:
                continue
            pcm = to_int16(frame.audio[:, 0])
            yield rtc.AudioFrame(pcm.tobytes(), frame.sample_rate, 1, len(pcm))
            if frame.end_of_segment:
                yield AudioSegmentEnd()

    def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        return self._stream()

    async def aclose(self) -> None:
        """End the session, and its thread."""
        await self._player.aclose()


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
    """Publish the video of an agent in another process, until the agent leaves or the room is disconnected.

    The agent sends its sound over the room with a `DataStreamAudioOutput`. Cancel the call to stop earlier.

    Args:
        room: connected, with a token that has the attribute `lk.publish_on_behalf`. agent: its identity; None for the
            first agent in the room. sample_rate, idle, seed: as of `LipSyncVideo`.
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
