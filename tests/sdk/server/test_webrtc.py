"""WebRTC against a real server, by aiortc as the client: pictures, sound and messages, and no session left open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from client_and_server import Served, bursts, chin, lead, lead_of_the_student, loudness

RATE = 48_000


class Voice(MediaStreamTrack):
    """`bursts`, in real time."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._at = 0
        self._begun = asyncio.get_running_loop().time()

    async def recv(self) -> AudioFrame:
        samples = (32767 * bursts(self._at, 960, RATE)).astype(np.int16)
        await asyncio.sleep(self._begun + self._at / RATE - asyncio.get_running_loop().time())
        frame = AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._at, Fraction(1, RATE)
        self._at += 960
        return frame


class Peer:
    """A client that speaks. pictures, sounds: received. seen, sound_times: arrival times. said: messages."""

    def __init__(self) -> None:
        self.peer = RTCPeerConnection()
        self.channel = self.peer.createDataChannel("lipstream")
        self.pictures: list[VideoFrame] = []
        self.sounds: list[AudioFrame] = []
        self.seen: list[float] = []
        self.sound_times: list[float] = []
        self.said: list[dict[str, Any]] = []
        self.channel.on("message", lambda text: self.said.append(json.loads(text)))
        self.peer.addTrack(Voice())
        self.peer.addTransceiver("video", direction="recvonly")
        self.peer.on("track", lambda track: self._reading.append(asyncio.create_task(self._read(track))))
        self._reading: list[asyncio.Task[None]] = []

    async def offer(self, server: Served, **fields: Any) -> str:
        """The SDP of the answer to an offer."""
        await self.peer.setLocalDescription(await self.peer.createOffer())
        offer = {"type": "offer", "sdp": self.peer.localDescription.sdp, "start": {"type": "start"}, **fields}
        answer = await asyncio.to_thread(post, server, offer)
        return str(answer["sdp"])

    async def open(self, server: Served, **fields: Any) -> str:
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


def post(server: Served, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/webrtc", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


@pytest.mark.parametrize(("codec", "name"), [("vp8", "VP8/90000"), ("h264", "H264/90000")])
def test_a_peer_speaks_and_is_answered(served: Served, codec: str, name: str) -> None:
    async def talk() -> Peer:
        peer = Peer()
        sdp = await peer.open(served, codec=codec)
        assert name in sdp
        assert sum("rtpmap" in line and "/90000" in line and "rtx" not in line for line in sdp.splitlines()) >= 1
        await peer.until(lambda p: len(p.pictures) >= 75 and "state" in p.types())
        peer.channel.send('{"type": "interrupt"}')
        await peer.until(lambda p: "interrupted" in p.types())
        peer.channel.send('{"type": "nothing"}')
        await peer.until(lambda p: "error" in p.types())
        peer.channel.send('{"type": "close"}')
        await peer.until(lambda p: "closed" in p.types())
        await peer.close()
        return peer

    peer = asyncio.run(talk())
    assert peer.types()[:2] == ["hello", "started"]
    started = peer.said[1]
    assert (peer.pictures[0].width, peer.pictures[0].height) == (started["width"], started["height"])
    steps = np.diff([frame.pts for frame in peer.pictures])
    assert np.median(steps) == 3600, "25 pictures a second"
    assert set(steps % 3600) == {0}
    assert peer.said[-1] == {"type": "closed", "code": 1000, "reason": "closed"}
    samples = np.concatenate([frame.to_ndarray().reshape(-1, 2)[:, 0] for frame in peer.sounds]).astype(float)
    spectrum = abs(np.fft.rfft(samples[-RATE:]))
    assert abs(int(spectrum.argmax()) - 800) <= 2, "the sound that was spoken comes back"
    served.wait_for("lipstream_sessions_active", 0)


@pytest.mark.slow  # a measurement in real time: on a busy machine arrival says little
def test_sound_and_pictures_of_a_peer_are_synchronised(served: Served) -> None:
    """By arrival time; a browser improves on that with the RTP clocks. A fault would show in each of three runs."""

    async def talk() -> Peer:
        peer = Peer()
        await peer.open(served)
        await peer.until(lambda p: len(p.pictures) >= 300)
        await peer.close()
        return peer

    def difference() -> float:
        peer = asyncio.run(talk())
        pictures = [
            (at, chin(frame.to_ndarray(format="rgb24"))) for at, frame in zip(peer.seen, peer.pictures, strict=True)
        ]
        sounds = [(at, loudness(frame.to_ndarray())) for at, frame in zip(peer.sound_times, peer.sounds, strict=True)]
        found = abs(lead(pictures[50:], sounds[100:]) - lead_of_the_student())
        served.wait_for("lipstream_sessions_active", 0)
        return round(found, 6)  # both are whole hundredths

    assert any(difference() <= 0.04 for _ in range(3))


@pytest.mark.parametrize("sdp", ["", "v=0", "not SDP at all\r\n", "v=0\r\nm=video 9 X"])
def test_an_invalid_offer_is_refused_with_a_reason(served: Served, sdp: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(served, {"type": "offer", "sdp": sdp, "start": {"type": "start"}})
    assert refused.value.code == 422
    assert json.loads(refused.value.read())["code"] == "protocol"
    assert served.metric("lipstream_sessions_active") == 0


def test_a_peer_above_the_limit_is_rejected(start_server: Callable[..., Any]) -> None:
    """Peers that are still connecting count, too."""

    async def crowd(server: Served) -> tuple[int, str | None]:
        peers = [Peer() for _ in range(4)]
        for peer in peers[:3]:
            await peer.offer(server)
        try:
            with pytest.raises(urllib.error.HTTPError) as refused:
                await peers[3].open(server)
        finally:
            for peer in peers:
                await peer.close()
        return refused.value.code, refused.value.headers["Retry-After"]

    with start_server("--max-sessions", "3") as server:
        assert asyncio.run(crowd(server)) == (503, "5")


def test_an_unknown_reference_is_refused(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(served, {"type": "offer", "sdp": "v=0", "start": {"type": "start", "reference": "unknown"}})
    assert refused.value.code == 422
    assert "unknown" in refused.value.read().decode()


def test_a_peer_that_vanishes_leaves_no_session(served: Served) -> None:
    async def vanish() -> None:
        peer = Peer()
        await peer.open(served)
        await peer.until(lambda p: len(p.pictures) >= 5)
        await peer.close()

    asyncio.run(vanish())
    served.wait_for("lipstream_sessions_active", 0)
