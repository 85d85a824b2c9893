"""A LiveKit agent with a face, in one process: a queue passes speech to the avatar, which joins the agent's room.

    pip install '.[livekit]'
    LIVEKIT_URL=wss://... LIVEKIT_API_KEY=... LIVEKIT_API_SECRET=... python examples/livekit_avatar.py dev

Add your STT, LLM and TTS to the session. With a GPU, run the avatar in a separate process instead, with one engine for
many rooms: livekit_rooms.py.
"""

from __future__ import annotations

from functools import cache

from lipstream import LipSyncEngine, PreparedReference, samples
from lipstream.integrations.livekit import LipSyncVideo
from livekit.agents import Agent, AgentSession, JobContext, WorkerOptions, cli
from livekit.agents.voice.avatar import AvatarRunner, QueueAudioOutput


@cache
def face() -> tuple[LipSyncEngine, PreparedReference]:
    engine = LipSyncEngine.load("tiny")
    engine.warmup()
    return engine, engine.prepare(samples.FACE)


async def entrypoint(context: JobContext) -> None:
    await context.connect()
    video = LipSyncVideo(*face(), sample_rate=24000)
    sound = QueueAudioOutput(sample_rate=24000)
    runner = AvatarRunner(context.room, audio_recv=sound, video_gen=video, options=video.options)
    await runner.start()

    # The avatar cannot pause, so it cannot resume after a false interruption.
    session = AgentSession(resume_false_interruption=False)  # stt=..., llm=..., tts=...
    session.output.audio = sound
    context.add_shutdown_callback(video.aclose)
    await session.start(agent=Agent(instructions="Answer in one sentence."), room=context.room)


if __name__ == "__main__":
    cli.run_app(WorkerOptions(entrypoint_fnc=entrypoint))
