"""An agent's two answers through the real `AvatarRunner`, the first interrupted; no server. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.append(os.environ["BESIDE"])
import lipstream
import numpy as np
from lipstream import LipSyncEngine
from lipstream.integrations.livekit import LipSyncVideo
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarRunner, QueueAudioOutput

RATE = 24_000


def tone(seconds: float) -> list[rtc.AudioFrame]:
    t = np.arange(int(seconds * RATE)) / RATE
    pcm = (9000 * np.sin(2 * np.pi * 220 * t)).astype(np.int16)
    size = RATE // 50
    return [rtc.AudioFrame(pcm[i : i + size].tobytes(), RATE, 1, size) for i in range(0, len(pcm), size)]


class Seen(LipSyncVideo):
    """Records what the runner receives."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given: list[Any] = []

    async def _watched(self) -> Any:
        async for item in self._stream():
            self.given.append(item)
            yield item

    def __aiter__(self) -> Any:
        return self._watched()


async def main() -> None:
    engine = LipSyncEngine.load("tiny", threads=1)
    engine.warmup()
    face = Path(lipstream.__file__).parent / "sample" / "face.mp4"
    video = Seen(engine, engine.prepare(face, seconds=2), sample_rate=RATE)
    output, room = QueueAudioOutput(sample_rate=RATE), rtc.Room()
    runner = AvatarRunner(room, audio_recv=output, video_gen=video, options=video.options)
    runner._video_publication = object()  # nothing is published: there is no server
    finished: list[dict[str, Any]] = []
    output.on(
        "playback_finished",
        lambda event: finished.append({"position": event.playback_position, "interrupted": event.interrupted}),
    )
    await runner.start()
    await asyncio.sleep(1)
    for frame in tone(4.0):
        await output.capture_frame(frame)
    output.flush()
    await asyncio.sleep(2)
    output.clear_buffer()
    for _ in range(100):
        await asyncio.sleep(0.05)
        if finished:
            break
    await asyncio.sleep(0.5)
    begin = len(video.given)
    for frame in tone(2.0):
        await output.capture_frame(frame)
    output.flush()
    for _ in range(200):
        await asyncio.sleep(0.05)
        if len(finished) == 2:
            break
    await asyncio.sleep(0.5)
    second = video.given[begin:]
    first_sound = next(i for i, item in enumerate(second) if isinstance(item, rtc.AudioFrame))
    end = next(i for i, item in enumerate(second) if isinstance(item, AudioSegmentEnd))
    spoken = second[first_sound - 1 : end]
    await video.aclose()
    await runner.aclose()
    await asyncio.sleep(1)
    print(
        json.dumps(
            {
                "finished": finished,
                "second_sound": sum(x.samples_per_channel for x in spoken if isinstance(x, rtc.AudioFrame)),
                "second_pictures": sum(isinstance(x, rtc.VideoFrame) for x in spoken),
                "idle_pictures": sum(isinstance(x, rtc.VideoFrame) for x in second[: first_sound - 1] + second[end:]),
                "threads_left": sum(t.name.startswith("lipstream-ahead") for t in threading.enumerate()),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
