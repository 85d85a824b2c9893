"""Sound and picture in step, over two minutes, at the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from client_and_server import RATE, Client, Served
from lipstream.server.protocol import IDLE


@pytest.mark.slow
def test_clicks_are_seen_when_they_are_heard_for_two_minutes(start_server: Callable[..., Any]) -> None:
    """Bursts of sound, one a second: in every one the mouth moves with the sound that carries the same stamp, and both
    arrive together, by the client's clock, from the first to the last."""

    async def talk(server: Served) -> tuple[Any, Any, list[tuple[float, int]]]:
        client = await Client.open(server)
        t = np.arange(RATE) / RATE
        second = np.where(t < 0.4, 0.5 * np.sin(2 * np.pi * 180 * t), 0.0)
        arrived: list[tuple[float, int]] = []

        async def send() -> None:
            for _ in range(120):
                await client.speak(second)
                await asyncio.sleep(1)
            await client.say("flush")

        sending = asyncio.create_task(send())
        async with asyncio.timeout(200):
            while "segment_end" not in client.heard.types():
                message = await client.socket.recv()
                client.heard.add(message)
                if isinstance(message, bytes) and message[0] == 1:
                    arrived.append((time.monotonic(), client.heard.pictures[-1][1]))
        await sending
        await client.close()
        return client.heard.sounds, client.heard.pictures, arrived

    with start_server("--max-sessions", "1", "--idle-limit", "600") as server:
        sounds, pictures, arrived = asyncio.run(talk(server))
    stamps = {at for _, at, *_ in sounds}
    assert all(at in stamps for _, at, *_ in pictures)  # each picture belongs to a sound that was sent
    speech = [(at, flags, data) for _, at, flags, data in sounds if not flags & IDLE]
    loud = np.array([np.abs(np.frombuffer(data, "<i2").astype(float)).mean() for *_, data in speech])
    by_stamp = {at: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) for _, at, _, data in pictures}
    shown = [by_stamp[at] for at, *_ in speech if at in by_stamp]
    assert len(shown) > 0.98 * len(speech)
    # The mouth's darkness against the sound, at shifts of a frame: in step means the best one is within one frame.
    height, width = shown[0].shape
    mouth = np.array([255 - p[height // 2 : 3 * height // 4, 2 * width // 5 : 3 * width // 5].mean() for p in shown])
    loud = loud[: len(mouth)]

    def match(lag: int) -> float:
        a, b = mouth[max(0, lag) : len(mouth) + min(0, lag)], loud[max(0, -lag) : len(loud) - max(0, lag)]
        return float(np.corrcoef(a - np.convolve(a, np.ones(25) / 25, "same"), b)[0, 1])

    scores = {lag: match(lag) for lag in range(-6, 7)}
    best = max(scores, key=lambda lag: scores[lag])
    assert abs(best) <= 1, scores
    # Two clocks, the client's and the stamps': their distance at the end is what it was at the beginning.
    late = [now - at / RATE for now, at in arrived]
    assert abs(np.median(late[-250:]) - np.median(late[50:300])) < 0.3
