"""Speech at several rates into `LipSyncVideo`, whose sound is published at another one. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

sys.path.append(os.environ["BESIDE"])
import numpy as np
from lipstream import LipSyncEngine, samples
from lipstream.integrations.livekit import LipSyncVideo
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd

RATE, HERTZ = 24_000, 300


def tone(rate: int, channels: int) -> list[rtc.AudioFrame]:
    """A second, in pieces of 20 ms."""
    pcm = (9000 * np.sin(2 * np.pi * HERTZ * np.arange(rate) / rate)).astype(np.int16)
    size = rate // 50
    return [
        rtc.AudioFrame(np.repeat(pcm[i : i + size], channels).tobytes(), rate, channels, size)
        for i in range(0, rate, size)
    ]


async def main() -> None:
    engine = LipSyncEngine.load("tiny", threads=1)
    video = LipSyncVideo(engine, engine.prepare(samples.FACE, seconds=1), sample_rate=RATE, idle="reference")
    found: list[dict[str, Any]] = []
    for rate, channels in ((RATE, 1), (16_000, 1), (48_000, 2)):
        for frame in tone(rate, channels):
            await video.push_audio(frame)
        await video.push_audio(AudioSegmentEnd())
        heard: list[rtc.AudioFrame] = []
        async for item in video:
            if isinstance(item, rtc.AudioFrame):
                heard.append(item)
            elif isinstance(item, AudioSegmentEnd):
                break
        pcm = np.concatenate([np.frombuffer(frame.data, np.int16) for frame in heard])
        loudest = np.argmax(np.abs(np.fft.rfft(pcm.astype(float))))
        found.append(
            {
                "rates": sorted({frame.sample_rate for frame in heard}),
                "seconds": len(pcm) / RATE,
                "hertz": float(np.fft.rfftfreq(len(pcm), 1 / RATE)[loudest]),
                "peak": int(np.abs(pcm).max()),
            }
        )
    await video.aclose()
    print(json.dumps(found))


asyncio.run(main())
