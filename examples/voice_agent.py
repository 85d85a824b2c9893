"""A voice agent's face: TTS in bursts, and a user who interrupts. Frames come every 40 ms, also in silence.

python examples/voice_agent.py      # 12 s; prints what happens, as a window or a call would show it

Replace `tts` with yours: pieces of sound of any length, faster than they are spoken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np
from lipstream import LipSyncEngine, LipSyncSession, RealtimePlayer, samples
from lipstream.media import read_audio
from numpy.typing import NDArray


async def tts(seconds: float) -> AsyncIterator[tuple[NDArray[np.float32], int]]:
    """An answer, in pieces of half a second that come four times as fast as they are spoken."""
    sound, rate = read_audio(samples.SPEECH)
    for begin in range(0, int(seconds * rate), rate // 2):
        await asyncio.sleep(0.125)
        yield sound[begin : begin + rate // 2], rate


async def answer(session: LipSyncSession, seconds: float) -> None:
    async for piece, rate in tts(seconds):
        session.push_audio(piece, rate)
    session.flush()


async def main() -> None:
    engine = LipSyncEngine.load("tiny")
    reference = await asyncio.to_thread(engine.prepare, samples.FACE)
    session = engine.session(reference, idle="closed")
    async with session, RealtimePlayer(session) as player:
        speaking = asyncio.create_task(answer(session, 6.0))
        was: bool | None = None
        shown = 0
        async for frame in player:
            # Here: show frame.image (uint8 [H, W, 3]) and play frame.audio.
            shown += 1
            if frame.speaking != was:
                print(f"{frame.pts:5.2f} s: {'speaks' if frame.speaking else 'is silent'}")
                was = frame.speaking
            if shown == 75:  # after three seconds the user begins to speak
                speaking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await speaking
                session.interrupt()  # what was not shown is discarded
                print(f"{frame.pts:5.2f} s: interrupted")
                speaking = asyncio.create_task(answer(session, 2.0))
            if shown == 300:
                break


if __name__ == "__main__":
    asyncio.run(main())
