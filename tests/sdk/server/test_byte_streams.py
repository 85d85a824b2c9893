"""A real client whose messages cut samples: every sample arrives, in order."""

from __future__ import annotations

import asyncio

import numpy as np
from client_and_server import RATE, Served, tone
from lipstream.server.protocol import IDLE

from benchmarks.server_client import Client


def test_messages_may_cut_a_sample(served: Served) -> None:
    sound = (tone(1.0) * 32767).astype("<i2")

    async def talk() -> None:
        client, data = await Client.open(served, sample_rate=RATE), sound.tobytes()
        for start in range(0, len(data), 1001):
            await client.socket.send(data[start : start + 1001])
        await client.say("flush")
        received = await client.until(lambda h: "segment_end" in h.types())
        await client.close()
        assert "error" not in received.types()
        spoken = b"".join(pcm for *_, flags, pcm in received.sounds if not flags & IDLE)
        assert np.abs(np.frombuffer(spoken, "<i2").astype(int) - sound).max() <= 1

    asyncio.run(talk())
