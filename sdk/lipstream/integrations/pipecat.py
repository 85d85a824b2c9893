"""Pipecat adapter: put `LipSyncVideoService` after the TTS service of a pipeline. Needs `lipstream[pipecat]`.

Written for and tested with pipecat-ai 1.14. Set the output transport to `video_out_enabled`, `video_out_width` and
`video_out_height` of the service's `size`, and `video_out_framerate` 25: examples/pipecat_avatar.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings

from ..engine import LipSyncEngine
from ..media import to_int16
from ..session import Idle, PreparedReference, RealtimePlayer

MAX_PENDING = 600.0
"""Seconds of pending audio: TTS is faster than real time."""


class LipSyncVideoService(AIService):
    """Replaces TTS speech in the pipeline by pictures and the same speech, in real time.

    25 times a second a picture is pushed downstream, during speech with its sound, so that an interruption discards
    exactly what was not shown. `TTSStoppedFrame` follows the last sound of its segment. Between segments there are idle
    frames.

    Args:
        engine: shared. reference: the face. idle: see `LipSyncEngine.session`.
    """

    def __init__(
        self,
        engine: LipSyncEngine,
        reference: PreparedReference,
        *,
        idle: Idle = "closed",
        seed: int = 42,
        **options: Any,
    ) -> None:
        super().__init__(settings=ServiceSettings(model=None), **options)
        self.size = reference.size
        self._engine, self._reference, self._idle, self._seed = engine, reference, idle, seed
        self._player: RealtimePlayer | None = None
        self._showing: Any = None
        self._form: tuple[int, int] | None = None  # of the segment: rate, channels
        self._stops: deque[TTSStoppedFrame] = deque()

    async def setup(self, setup: FrameProcessorSetup) -> None:
        await super().setup(setup)
        session = self._engine.session(self._reference, idle=self._idle, seed=self._seed, max_pending=MAX_PENDING)
        self._player = RealtimePlayer(session)
        self._showing = self.create_task(self._show())

    async def stop(self, frame: EndFrame) -> None:
        await super().stop(frame)
        await self._end()

    async def cancel(self, frame: CancelFrame) -> None:
        await super().cancel(frame)
        await self._end()

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._end()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        assert self._player is not None
        session = self._player.session
        if isinstance(frame, TTSAudioRawFrame):
            form = frame.sample_rate, frame.num_channels
            if self._form not in (None, form):
                session.flush()  # a segment has one rate, and one number of channels
            self._form = form
            session.push_audio(frame.audio, frame.sample_rate, channels=frame.num_channels)
        elif isinstance(frame, TTSStoppedFrame):
            if self._form:
                self._stops.append(frame)
                session.flush()
                self._form = None
            else:  # no speech since the last one
                await self.push_frame(frame, direction)
        else:
            if isinstance(frame, InterruptionFrame):
                session.interrupt()
                self._stops.clear()
                self._form = None
            await self.push_frame(frame, direction)

    async def _show(self) -> None:
        """Push each frame downstream when it is due."""
        assert self._player is not None
        async for frame in self._player:
            height, width = frame.image.shape[:2]
            picture = OutputImageRawFrame(image=frame.image.tobytes(), size=(width, height), format="RGB")
            if not frame.idle:
                pcm = to_int16(frame.audio)
                await self.push_frame(TTSAudioRawFrame(pcm.tobytes(), frame.sample_rate, pcm.shape[1]))
            await self.push_frame(picture)
            if frame.end_of_segment and self._stops:
                await self.push_frame(self._stops.popleft())

    async def _end(self) -> None:
        if self._player is not None:
            await self._player.aclose()
        if self._showing is not None:
            await self.cancel_task(self._showing)
            self._showing = None
