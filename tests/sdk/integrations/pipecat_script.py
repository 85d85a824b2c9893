"""Two answers of TTS through the service in a real pipeline, the first interrupted. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

sys.path.append(os.environ["BESIDE"])
import lipstream
import numpy as np
from lipstream import LipSyncEngine
from lipstream.integrations.pipecat import LipSyncVideoService
from pipecat.frames.frames import (
    InterruptionFrame,
    OutputImageRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.tests.utils import SleepFrame, run_test

RATE = 24_000


def tone(seconds: float, hertz: float) -> TTSAudioRawFrame:
    t = np.arange(int(seconds * RATE)) / RATE
    return TTSAudioRawFrame((9000 * np.sin(2 * np.pi * hertz * t)).astype(np.int16).tobytes(), RATE, 1)


async def main() -> None:
    engine = LipSyncEngine.load("tiny", threads=1)
    engine.warmup()
    face = Path(lipstream.__file__).parent / "sample" / "face.mp4"
    service = LipSyncVideoService(engine, engine.prepare(face, seconds=2))
    sent = [
        SleepFrame(sleep=1),
        TTSStartedFrame(),
        first := tone(4.0, 220),
        TTSStoppedFrame(),
        SleepFrame(sleep=2),
        InterruptionFrame(),
        SleepFrame(sleep=1),
        TTSStartedFrame(),
        second := tone(2.0, 330),
        TTSStoppedFrame(),
        SleepFrame(sleep=4),
    ]
    down, _ = await run_test(service, frames_to_send=sent, start_timeout=10)
    cut = next(i for i, frame in enumerate(down) if isinstance(frame, InterruptionFrame))
    before, after = down[:cut], down[cut:]
    sounds = [i for i, frame in enumerate(after) if isinstance(frame, TTSAudioRawFrame)]
    stop = next(i for i, frame in enumerate(after) if isinstance(frame, TTSStoppedFrame))
    await asyncio.sleep(0.5)
    print(
        json.dumps(
            {
                "first_sound_s": sum(len(f.audio) for f in before if isinstance(f, TTSAudioRawFrame)) / 2 / RATE,
                "second_sound": sum(len(after[i].audio) for i in sounds) // 2,
                "second_pictures": sum(isinstance(f, OutputImageRawFrame) for f in after[sounds[0] : stop]),
                "idle_pictures": sum(isinstance(f, OutputImageRawFrame) for f in after[: sounds[0]]),
                "stopped": sum(isinstance(f, TTSStoppedFrame) for f in down),
                "original_sound": sum(f is first or f is second for f in down),
                "threads_left": sum(t.name.startswith("lipstream-ahead") for t in threading.enumerate()),
            }
        )
    )


asyncio.run(main())
