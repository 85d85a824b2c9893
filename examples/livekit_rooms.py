"""One process with one engine serves the faces of agents in many LiveKit rooms.

    pip install '.[livekit,server]'
    LIPSTREAM_TOKEN=secret python examples/livekit_rooms.py

An agent requests its face when it starts, in its entrypoint:

    token = (
        api.AccessToken()
        .with_identity("face")
        .with_grants(api.VideoGrants(room_join=True, room=context.room.name))
        .with_attributes({"lk.publish_on_behalf": context.room.local_participant.identity})
        .to_jwt()
    )
    body = {"url": os.environ["LIVEKIT_URL"], "token": token, "agent": context.room.local_participant.identity}
    await http.post("http://127.0.0.1:8100/rooms", json=body, headers={"Authorization": "Bearer secret"})
    session.output.audio = DataStreamAudioOutput(context.room, destination_identity="face", sample_rate=24000)
"""

from __future__ import annotations

import asyncio
import hmac
import os

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from lipstream import LipSyncEngine, samples
from lipstream.integrations.livekit import speak_in
from livekit import rtc
from pydantic import BaseModel

TOKEN = os.environ["LIPSTREAM_TOKEN"]
app = FastAPI()
engine = LipSyncEngine.load("tiny")
face = engine.prepare(samples.FACE)
most = engine.capacity(face)
rooms: set[asyncio.Task[None]] = set()


class Room(BaseModel):
    """A room to join. agent: the identity of the agent to show."""

    url: str
    token: str
    agent: str


@app.post("/rooms", status_code=202)
async def join(where: Room, request: Request) -> dict[str, int]:
    if not hmac.compare_digest(request.headers.get("authorization", ""), f"Bearer {TOKEN}"):
        raise HTTPException(401)
    if len(rooms) >= most:
        raise HTTPException(503, f"all {most} faces are in use")
    rooms.add(task := asyncio.create_task(be_there(where)))
    task.add_done_callback(rooms.discard)
    return {"rooms": len(rooms), "most": most}


async def be_there(where: Room) -> None:
    room = rtc.Room()
    await room.connect(where.url, where.token)
    try:
        await speak_in(room, engine, face, agent=where.agent)
    finally:
        await room.disconnect()


if __name__ == "__main__":
    uvicorn.run(app, port=8100)
