"""A session over WebRTC, by aiortc: for networks that lose packets. Needs `lipstream[webrtc]`.

The client's offer has one track of sound to be spoken, room for a picture and a sound to come back, and a data channel
with the same text messages as the WebSocket. The session's clock drives both tracks: each frame stamps its picture and
its sound by how many frames were shown before, so they cannot drift apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from fractions import Fraction
from importlib.metadata import version
from typing import Any, Generic, Literal, TypeVar

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.codecs import h264, vpx
from aiortc.mediastreams import MediaStreamError
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ...errors import BackpressureError, LipStreamError, ProtocolError
from ...media import FPS, to_int16
from ...session import Frame
from ..client_session import ClientSession, End, ended
from ..protocol import NORMAL, POLICY, Start, failure, hello, parse
from ..realtime_session import RealtimeSession
from ..state import State

LOG = logging.getLogger("lipstream")
RATE = 48_000
"""Samples a second: Opus has no other."""
_PACKET = RATE // 50
"""Samples of a packet of sound, 20 ms."""
_VIDEO_CLOCK = 90_000
_MOST_PICTURES, _MOST_SOUND = 3, 2 * FPS
"""Frames that wait for a track to be sent; the oldest is dropped."""
_MOST_UNSAID = 50
"""Messages that wait for the data channel to open."""
_T = TypeVar("_T")


class Offer(BaseModel):
    """The body of `POST /v1/webrtc`. Of `start`, `sample_rate`, `channels` and `video` mean nothing here."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sdp: str = Field(max_length=1 << 18)
    type: Literal["offer"]
    start: Start
    codec: Literal["vp8", "h264"] = "vp8"


class _Waiting(Generic[_T]):
    """What waits for a track to be sent."""

    def __init__(self, most: int) -> None:
        self._items: deque[_T] = deque(maxlen=most)
        self._some = asyncio.Event()

    def put(self, item: _T) -> bool:
        """Add an item; whether the oldest one had to go for it."""
        full = len(self._items) == self._items.maxlen
        self._items.append(item)
        self._some.set()
        return full

    def clear(self) -> None:
        self._items.clear()

    async def get(self) -> _T:
        while not self._items:
            self._some.clear()
            await self._some.wait()
        return self._items.popleft()


class PictureTrack(MediaStreamTrack):
    """The pictures, 25 a second at most. A side that is odd loses a line or column."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.waiting: _Waiting[tuple[int, NDArray[np.uint8]]] = _Waiting(_MOST_PICTURES)

    async def recv(self) -> VideoFrame:
        """The next picture, once it is due."""
        count, image = await self.waiting.get()
        height, width = (side - side % 2 for side in image.shape[:2])
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        frame.pts, frame.time_base = count * _VIDEO_CLOCK // FPS, Fraction(1, _VIDEO_CLOCK)
        return frame


class SoundTrack(MediaStreamTrack):
    """The sound that belongs to the pictures, in packets of 20 ms."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.waiting: _Waiting[tuple[int, NDArray[np.int16]]] = _Waiting(_MOST_SOUND)
        self._rest: tuple[int, NDArray[np.int16]] | None = None

    async def recv(self) -> AudioFrame:
        """The next packet, once it is due."""
        if self._rest is None:
            at, samples = await self.waiting.get()
        else:
            at, samples = self._rest
            await asyncio.sleep(_PACKET / RATE)
        packet, rest = samples[:_PACKET], samples[_PACKET:]
        self._rest = (at + len(packet), rest) if len(rest) else None
        frame = AudioFrame.from_ndarray(packet[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
        return frame


class WebRtcConnection:
    """A peer and its session. It is the session's transport, too; closed when the peer is gone or the session ends."""

    def __init__(self, state: State, offer: Offer) -> None:
        self._state, self._offer = state, offer
        self._start = offer.start.model_copy(update={"sample_rate": RATE, "channels": 1})
        servers = [RTCIceServer(url) for url in state.settings.ice_servers]
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._pictures, self._sound = PictureTrack(), SoundTrack()
        self._client = ClientSession(state, self)
        self._channel: RTCDataChannel | None = None
        self._unsaid: list[str] = []
        self._shown = 0
        self._heard: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        self._connected = asyncio.Event()
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    async def answer(self) -> dict[str, Any]:
        """What the client needs to connect.

        Raises:
            ProtocolError: the offer cannot be answered.
        """
        peer = self._peer
        peer.on("track", self._on_track)
        peer.on("datachannel", self._on_channel)
        peer.on("connectionstatechange", self._on_state)
        peer.addTrack(self._sound)
        peer.addTrack(self._pictures)
        wanted = f"video/{self._offer.codec}"
        codecs = [c for c in RTCRtpSender.getCapabilities("video").codecs if c.mimeType.lower() == wanted]
        for transceiver in peer.getTransceivers():
            if transceiver.kind == "video":
                transceiver.setCodecPreferences(codecs)  # before the offer: later it is not heeded
        try:
            await peer.setRemoteDescription(RTCSessionDescription(self._offer.sdp, "offer"))
            await peer.setLocalDescription(await peer.createAnswer())
        except Exception as error:  # of the parser: whatever a wrong offer runs into
            await peer.close()
            raise ProtocolError(
                f"an offer that cannot be answered: {error}", expected=f"SDP with sound, a picture in {wanted} and data"
            ) from error
        return {"type": "answer", "sdp": peer.localDescription.sdp}

    async def run(self) -> None:
        """From the answer until somebody ends it."""
        state = self._state
        assert state.references is not None
        try:
            await self.send_message(hello(version("lipstream"), state.references.names()))
            try:
                await asyncio.wait_for(self._connected.wait(), state.settings.start_within)
            except TimeoutError:
                end = POLICY, f"not connected within {state.settings.start_within:g} s"
            else:
                end = await ended(self, self._client.run(self._start, self._listen))
            LOG.debug("connection ended: %s", end[1])
            await self.close(*end)
        finally:
            await self._peer.close()
            self._peer.remove_all_listeners()  # the ring of references through them would keep it all for a while
            self._pictures.waiting.clear()

    async def close(self, code: int, reason: str) -> None:
        """See `Connection`."""
        self._finish((code, reason))
        with contextlib.suppress(Exception):
            await self.send_message({"type": "closed", "code": code, "reason": reason})
            await asyncio.sleep(0.1)  # the message is on its way before its channel is not
        await self._peer.close()

    async def send_message(self, message: dict[str, Any]) -> None:
        """See `Transport`."""
        text = json.dumps(message)
        if self._channel is not None and self._channel.readyState == "open":
            self._channel.send(text)
        elif len(self._unsaid) < _MOST_UNSAID:
            self._unsaid.append(text)

    async def send_frame(self, frame: Frame, at: int, picture: bool) -> None:
        """See `Transport`. Nothing waits: what the tracks do not send in time is dropped."""
        self._sound.waiting.put((self._shown * RATE // FPS, to_int16(frame.audio).reshape(-1)))
        if picture and self._pictures.waiting.put((self._shown, frame.image)):
            self._state.metrics.count("pictures_dropped")
        self._shown += 1

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and not self._heard.done():
            self._heard.set_result(track)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._on_message)
        for text in self._unsaid:
            channel.send(text)
        self._unsaid.clear()

    async def _on_message(self, text: str | bytes) -> None:
        try:
            if isinstance(text, bytes):
                raise ProtocolError("bytes on the data channel", expected="JSON; sound goes over its track")
            if end := self._client.handle_message(parse(text)):
                self._finish(end)
        except LipStreamError as error:
            await self._wrong(error)

    async def _wrong(self, error: LipStreamError) -> None:
        try:
            await self._client.report_error(error)
        except ProtocolError as last:
            self._finish((POLICY, last.found))

    def _finish(self, end: End) -> None:
        if not self._end.done():
            self._end.set_result(end)

    def _on_state(self) -> None:
        if self._peer.connectionState in ("connected", "failed", "closed"):
            self._connected.set()
        if self._peer.connectionState in ("failed", "closed"):
            self._finish((NORMAL, "the client is gone"))

    async def _listen(self, live: RealtimeSession) -> End:
        """Sound into the session, until the end."""
        hearing = asyncio.create_task(self._hear(live))
        try:
            return await self._end
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def _hear(self, live: RealtimeSession) -> None:
        track = await self._heard
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        with contextlib.suppress(MediaStreamError):  # the client's track has ended
            while True:
                packet = await track.recv()
                assert isinstance(packet, AudioFrame)
                for frame in resampler.resample(packet):
                    try:
                        live.push(frame.to_ndarray().tobytes())
                    except BackpressureError as error:
                        await self._wrong(error)
        live.flush()


def add_route(
    app: FastAPI,
    state: State,
    admitted: Callable[[Request], None],
    visit: Callable[[WebRtcConnection], Awaitable[None]],
) -> None:
    """`POST /v1/webrtc`. Args: admitted: raises unless a request may come in. visit: lets a connection run."""
    visits: set[asyncio.Future[None]] = set()
    _set_bitrate(1000 * state.settings.bitrate)

    @app.post("/v1/webrtc", dependencies=[Depends(admitted)])
    async def webrtc(offer: Offer) -> JSONResponse:
        """A WebRTC client's offer; the answer, or why there is none. docs/protocol.md."""
        # A peer that is still connecting holds a place, too: or any number of them could be opened.
        if reason := state.refusal(connected=len(visits)):
            state.metrics.rejected.labels("draining" if state.draining else "capacity").inc()
            raise HTTPException(503, reason, {"Retry-After": "5"})
        assert state.references is not None
        try:
            state.references.get(offer.start.reference)
            connection = WebRtcConnection(state, offer)
            answer = await connection.answer()
        except LipStreamError as error:
            return JSONResponse(failure(error, fatal=True), 422)
        visits.add(running := asyncio.ensure_future(visit(connection)))
        running.add_done_callback(visits.discard)
        return JSONResponse(answer)


def _set_bitrate(most: int) -> None:
    """Bits a second of a picture, for the encoders that are made from now on; aiortc has them as constants.

    They begin there, and a client that reports losses brings them down to a quarter at most.
    """
    for codec in (vpx, h264):
        vars(codec).update(DEFAULT_BITRATE=most, MAX_BITRATE=most, MIN_BITRATE=most // 4)
