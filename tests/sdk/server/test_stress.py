"""Stress tests of the server: ten thousand messages of every kind, and two minutes of synchronised media."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from client_and_server import RATE, Served, bursts, chin, lead, lead_of_the_student, loudness
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.server_client import Client, held

MESSAGES = 10_000


def any_message(rng: random.Random) -> str | bytes:
    """A random message: sometimes valid, else a mutation of a valid one, or random data."""
    kind = rng.choice(["start", "flush", "interrupt", "close", "begin", "", None, 7])
    fields: dict[str, Any] = {"type": kind}
    if kind == "start":
        fields |= rng.choice(
            [
                {},
                {"sample_rate": rng.choice([8000, 48000, 0, -1, 10**9, "fast", None, float("inf")])},
                {"reference": rng.choice(["bundled", "../../etc/passwd", "x" * 65, 3])},
                {"video": rng.choice(["h264", "gif"]), "channels": rng.choice([1, 8, 9])},
                {"seed": rng.choice([0, 2**64, -1]), "more": 1},
            ]
        )
    return rng.choice(
        [
            json.dumps(fields),
            json.dumps(fields)[: rng.randrange(40)],
            json.dumps([fields] * rng.randrange(4)),
            "[" * rng.randrange(2000),
            "".join(chr(rng.choice([0, 9, 34, 123, 125, 955, 0x1F600])) for _ in range(rng.randrange(50))),
            rng.randbytes(2 * rng.randrange(4000)),
            rng.randbytes(rng.randrange(100)),
            b"",
        ]
    )


async def nuisance(server: Served, rng: random.Random, messages: int) -> int:
    """One connection that sends random messages and reads the answers; returns the number of messages sent."""
    said = 0
    try:
        async with connect(server.address, max_size=None) as socket:
            if rng.random() < 0.8:
                await socket.send('{"type": "start"}')
            reading = asyncio.create_task(drain(socket))
            try:
                while said < messages:
                    said += 1
                    await socket.send(any_message(rng))
                    if rng.random() < 0.1:
                        await asyncio.sleep(0.01)
            finally:
                reading.cancel()
    except ConnectionClosed:
        pass
    return said


async def drain(socket: Any) -> None:
    async for _ in socket:
        pass


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc what the server holds")
def test_the_server_survives_ten_thousand_random_messages(served: Served) -> None:
    async def pester(seed: int, messages: int) -> None:
        said, rng = 0, random.Random(seed)
        while said < messages:
            said += await nuisance(served, rng, 70)

    async def all_at_once(messages: int) -> None:
        await asyncio.gather(*(pester(seed, messages // 2) for seed in range(2)))

    asyncio.run(all_at_once(MESSAGES // 4))  # pools and caches are as large as they get
    served.wait_for("lipstream_sessions_active", 0)
    memory, threads, files = held(served.process.pid)
    asyncio.run(all_at_once(MESSAGES))
    served.wait_for("lipstream_sessions_active", 0)
    served.get("/v1/health/ready")
    time.sleep(1)
    memory_after, threads_after, files_after = held(served.process.pid)
    assert memory_after - memory < 40, f"{memory:.0f} MiB before, {memory_after:.0f} after"
    assert threads_after <= threads + 2
    assert files_after <= files + 2
    assert "Traceback" not in served.log.read_text()

    async def still_works() -> None:
        client = await Client.open(served)
        await client.speak(bursts(0, RATE, RATE))
        await client.until(lambda received: len(received.pictures) >= 30)
        await client.close()

    asyncio.run(still_works())
    served.wait_for("lipstream_sessions_active", 0)


@pytest.mark.slow
def test_sound_and_pictures_stay_synchronous_for_two_minutes(start_server: Callable[..., Any]) -> None:
    """By time stamps and by arrival times, in the first and in the last half minute."""
    seconds = 120
    pictures: list[tuple[float, float, float]] = []  # arrival, stamp, chin
    sounds: list[tuple[float, float, float]] = []

    async def watch(server: Served) -> None:
        client = await Client.open(server)
        pushed = 0
        while len(sounds) < 25 * seconds:
            if pushed * RATE <= len(sounds) * RATE // 25 + 2 * RATE:
                await client.speak(bursts(pushed * RATE, RATE, RATE))
                pushed += 1
            received = client.received
            received.add(await asyncio.wait_for(client.socket.recv(), 10))
            now = time.monotonic()
            for _, at, _, data in received.pictures:
                image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
                pictures.append((now, at / RATE, chin(image)))
            sounds.extend((now, at / RATE, loudness(np.frombuffer(data, "<i2"))) for _, at, _, data in received.sounds)
            received.pictures.clear()
            received.sounds.clear()
        await client.close()

    with start_server("--max-sessions", "1") as server:
        asyncio.run(watch(server))
    assert len(pictures) >= 0.99 * len(sounds)
    wanted = lead_of_the_student()
    half = 30 * 25
    for part in (slice(50, half), slice(-half, None)):
        for clock in (0, 1):
            found = lead([(x[clock], x[2]) for x in pictures[part]], [(x[clock], x[2]) for x in sounds[part]])
            assert abs(found - wanted) <= 0.04, f"{found:.2f} s ahead, {wanted:.2f} as made"
    arrivals = {at: now for now, at, _ in sounds}
    apart = [abs(now - arrivals[at]) for now, at, _ in pictures]
    assert np.quantile(apart, 0.99) <= 0.04
