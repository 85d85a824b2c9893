"""A Pipecat pipeline with a face: sends one sentence, as synthetic sound, to a browser over WebRTC.

    pip install '.[pipecat]' 'pipecat-ai[webrtc]'
    python examples/pipecat_avatar.py            # then open http://localhost:7860

In your bot, put the service between TTS and the output of the transport.
"""

from __future__ import annotations

import numpy as np
from lipstream import LipSyncEngine, samples
from lipstream.integrations.pipecat import LipSyncVideoService
from lipstream.media import read_audio
from pipecat.frames.frames import TTSAudioRawFrame, TTSStartedFrame, TTSStoppedFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner


async def bot(arguments: RunnerArguments) -> None:
    engine = LipSyncEngine.load("tiny")
    engine.warmup()
    face = LipSyncVideoService(engine, engine.prepare(samples.FACE))
    width, height = face.size

    def parameters() -> TransportParams:
        return TransportParams(
            audio_out_enabled=True,
            video_out_enabled=True,
            video_out_is_live=True,
            video_out_width=width,
            video_out_height=height,
            video_out_framerate=25,
        )

    transport = await create_transport(arguments, {"webrtc": parameters})
    worker = PipelineWorker(Pipeline([transport.input(), face, transport.output()]))

    @transport.event_handler("on_client_connected")
    async def greet(transport: object, client: object) -> None:
        sound, rate = read_audio(samples.SPEECH)
        pcm = (np.asarray(sound).reshape(len(sound), -1)[:, 0] * 32767).astype(np.int16)
        for frame in (TTSStartedFrame(), TTSAudioRawFrame(pcm.tobytes(), rate, 1), TTSStoppedFrame()):
            await worker.queue_frame(frame)

    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
