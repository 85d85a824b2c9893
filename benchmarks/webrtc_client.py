"""A client of `lipstream serve` over WebRTC, by aiortc."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from lipstream.server.transports.lost_packets import pass_on_arrival
from numpy.typing import NDArray

from .server_client import Server

RATE = 48_000
_PACKET = RATE // 50


class Voice(MediaStreamTrack):
    """Sound in real time, from the first packet that is sent.

    Args:
        sound: gives samples from (first, number), int16 [number].
    """

    kind = "audio"

    def __init__(self, sound: Callable[[int, int], NDArray[np.int16]]) -> None:
        super().__init__()
        self._sound = sound
        self._begun: float | None = None
        self.at = 0
        """Samples sent."""

    async def recv(self) -> AudioFrame:
        now = asyncio.get_running_loop().time
        if self._begun is None:
            self._begun = now()
        await asyncio.sleep(self._begun + self.at / RATE - now())
        frame = AudioFrame.from_ndarray(self._sound(self.at, _PACKET)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self.at, Fraction(1, RATE)
        self.at += _PACKET
        return frame


class Peer:
    """A client that speaks. pictures, sounds: received. seen, sound_times: arrival times. said: messages."""

    def __init__(self, voice: Voice) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.channel = self.peer.createDataChannel("lipstream")
        self.pictures: list[VideoFrame] = []
        self.sounds: list[AudioFrame] = []
        self.seen: list[float] = []
        self.sound_times: list[float] = []
        self.said: list[dict[str, Any]] = []
        self.channel.on("message", lambda text: self.said.append(json.loads(text)))
        self.peer.addTrack(voice)
        pass_on_arrival(self.peer.getReceivers()[0])  # a browser conceals lost packets, aiortc discards more of them
        self.peer.addTransceiver("video", direction="recvonly")
        self.peer.on("track", lambda track: self._reading.append(asyncio.create_task(self._read(track))))
        self._reading: list[asyncio.Task[None]] = []

    async def offer(self, server: Server, **fields: Any) -> str:
        """The SDP of the answer to an offer."""
        await self.peer.setLocalDescription(await self.peer.createOffer())
        offer = {"type": "offer", "sdp": self.peer.localDescription.sdp, "start": {"type": "start"}, **fields}
        answer = await asyncio.to_thread(server.post, "/v1/webrtc", offer)
        return str(answer["sdp"])

    async def open(self, server: Server, **fields: Any) -> str:
        """Connect; the answer's SDP."""
        sdp = await self.offer(server, **fields)
        await self.peer.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        return sdp

    async def _read(self, track: Any) -> None:
        frames, times = (self.pictures, self.seen) if track.kind == "video" else (self.sounds, self.sound_times)
        with contextlib.suppress(MediaStreamError):
            while True:
                frames.append(await track.recv())
                times.append(time.monotonic())

    async def until(self, enough: Callable[[Peer], bool], seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not enough(self):
                await asyncio.sleep(0.02)

    def types(self) -> list[str]:
        return [message["type"] for message in self.said]

    async def close(self) -> None:
        await self.peer.close()
        await asyncio.gather(*self._reading, return_exceptions=True)
