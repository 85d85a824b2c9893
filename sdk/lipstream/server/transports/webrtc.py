"""A session over WebRTC, by aiortc: for networks that lose packets. Needs `lipstream[webrtc]`.

The client's offer has an audio track to be spoken, transceivers for video and audio in return, and a data channel with
the same text messages as the WebSocket. Both tracks are stamped from one count of frames, so they cannot drift apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
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
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ...errors import BackpressureError, LipStreamError, ProtocolError
from ...media import FPS, to_int16
from ...media.picture import Picture
from ...session import Frame
from ..audit import Who
from ..client_session import ClientSession, End, ended
from ..frame_encoder import live_format
from ..gate import who
from ..ice import ice_servers
from ..pace import Pace
from ..protocol import NORMAL, POLICY, Start, hello, parse
from ..realtime_session import RealtimeSession
from ..state import Place, State
from .lost_packets import Gaps, pass_on_arrival
from .sdp import checked

LOG = logging.getLogger("lipstream")
RATE = 48_000
"""Samples per second; Opus uses no other."""
_PACKET = RATE // 50
"""Samples of an audio packet, 20 ms."""
_VIDEO_CLOCK = 90_000
_MOST_PICTURES, _MOST_SOUND = 3, 2 * FPS
"""Frames queued for a track; beyond that the oldest is dropped."""
_MOST_UNSENT = 50
"""Messages queued until the data channel opens."""
_MOST_UNREAD = 200
"""Messages that arrive before earlier ones are handled."""
_CLOSING = 2.0
"""Seconds that a client has to close its end after the last message."""
_T = TypeVar("_T")


class Offer(BaseModel):
    """The body of `POST /v1/webrtc`. Of `start`, `sample_rate`, `channels` and `video` are ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sdp: str = Field(max_length=1 << 18)
    type: Literal["offer"]
    start: Start
    codec: Literal["vp8", "h264"] = "vp8"


class _TrackQueue(Generic[_T]):
    """A bounded queue of a track."""

    def __init__(self, most: int) -> None:
        self._items: deque[_T] = deque(maxlen=most)
        self._some = asyncio.Event()

    def put(self, item: _T) -> bool:
        """Add an item; returns whether the oldest one was dropped."""
        full = len(self._items) == self._items.maxlen
        self._items.append(item)
        self._some.set()
        return full

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        self._items.clear()

    async def get(self) -> _T:
        while not self._items:
            self._some.clear()
            await self._some.wait()
        return self._items.popleft()


class VideoTrack(MediaStreamTrack):
    """The pictures, at most 25 a second. The last line or column of an odd side is repeated."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.queue: _TrackQueue[tuple[int, Picture]] = _TrackQueue(_MOST_PICTURES)

    async def recv(self) -> VideoFrame:
        """The next picture, once it is due."""
        count, picture = await self.queue.get()
        width, height = picture.width + picture.width % 2, picture.height + picture.height % 2
        frame = picture.converted(live_format(picture.format)).padded(width, height).to_frame()
        frame.pts, frame.time_base = count * _VIDEO_CLOCK // FPS, Fraction(1, _VIDEO_CLOCK)
        return frame


class AudioTrack(MediaStreamTrack):
    """The sound of the pictures, in packets of 20 ms."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.queue: _TrackQueue[tuple[int, NDArray[np.int16]]] = _TrackQueue(_MOST_SOUND)
        self._rest: tuple[int, NDArray[np.int16]] | None = None

    async def recv(self) -> AudioFrame:
        """The next packet, once it is due."""
        if self._rest is None:
            at, samples = await self.queue.get()
        else:
            at, samples = self._rest
            if not self.queue:  # else it is late, and on a busy machine would stay so
                await asyncio.sleep(_PACKET / RATE)
        packet, rest = samples[:_PACKET], samples[_PACKET:]
        self._rest = (at + len(packet), rest) if len(rest) else None
        frame = AudioFrame.from_ndarray(packet[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
        return frame


class WebRtcConnection:
    """A peer and its session. It is the session's transport; closed when the peer disconnects or the session ends."""

    def __init__(self, state: State, offer: Offer, client: Who, place: Place) -> None:
        self._state, self._offer = state, offer
        self._start = offer.start.model_copy(update={"sample_rate": RATE, "channels": 1})
        servers = [RTCIceServer(**server) for server in ice_servers(state.settings)]
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._pictures, self._sound = VideoTrack(), AudioTrack()
        self._client = ClientSession(state, self, client, place)
        self._channel: RTCDataChannel | None = None
        self._unsent: list[str] = []
        self._unread: asyncio.Queue[str | bytes] = asyncio.Queue(_MOST_UNREAD)
        self._shown = 0
        self._audio_track: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        self._connected, self._disconnected = asyncio.Event(), asyncio.Event()
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
                transceiver.direction = "sendonly"  # nobody reads pictures of a client
                transceiver.setCodecPreferences(codecs)  # before the offer: later it is ignored
        try:
            await peer.setRemoteDescription(RTCSessionDescription(self._offer.sdp, "offer"))
            for transceiver in peer.getTransceivers():
                if transceiver.kind == "audio":
                    pass_on_arrival(transceiver.receiver)
            await peer.setLocalDescription(await peer.createAnswer())
        except Exception as error:  # the SDP parser raises errors of any class
            await self._close_peer()
            raise ProtocolError(
                f"an offer that cannot be answered: {error}", expected=f"SDP with sound, a picture in {wanted} and data"
            ) from error
        return {"type": "answer", "sdp": peer.localDescription.sdp}

    async def run(self) -> None:
        """Run from the answer until client, server or a limit ends it."""
        state = self._state
        assert state.references is not None
        handling = asyncio.create_task(self._handle_messages())
        try:
            await self.send_message(hello(version("lipstream"), state.references.names()))
            try:
                await asyncio.wait_for(self._connected.wait(), state.settings.start_within)
            except TimeoutError:
                end = POLICY, f"not connected within {state.settings.start_within:g} s"
                self._client.log_end(*end)
            else:
                end = await ended(self._client, self, self._client.run(self._start, self._listen))
            await self.close(*end)
        finally:
            handling.cancel()
            await asyncio.gather(handling, return_exceptions=True)
            await self._close_peer()
            self._peer.remove_all_listeners()  # reference cycles through them would keep its memory for a while
            self._pictures.queue.clear()

    async def close(self, code: int, reason: str) -> None:
        """See `Connection`."""
        self._finish((code, reason))
        with contextlib.suppress(Exception):
            await self.send_message({"type": "closed", "code": code, "reason": reason})
            # A lost message is sent again after a second, but not by a closed peer.
            await asyncio.wait_for(self._disconnected.wait(), _CLOSING)
        await self._close_peer()

    async def _close_peer(self) -> None:
        with contextlib.suppress(Exception):  # of a peer that a strange offer has set up in part
            await self._peer.close()

    async def send_message(self, message: dict[str, Any]) -> None:
        """See `Transport`."""
        text = json.dumps(message)
        if self._channel is not None and self._channel.readyState == "open":
            self._channel.send(text)
        elif len(self._unsent) < _MOST_UNSENT:
            self._unsent.append(text)

    async def send_frame(self, frame: Frame, at: int, picture: bool) -> None:
        """See `Transport`. Never waits: what the tracks do not send in time is dropped."""
        self._sound.queue.put((self._shown * RATE // FPS, to_int16(frame.audio).reshape(-1)))
        if picture and self._pictures.queue.put((self._shown, frame.picture)):
            self._state.metrics.count("pictures_dropped")
        self._shown += 1

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and not self._audio_track.done():
            self._audio_track.set_result(track)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._on_message)
        for text in self._unsent:
            channel.send(text)
        self._unsent.clear()

    def _on_message(self, text: str | bytes) -> None:
        try:
            self._unread.put_nowait(text)
        except asyncio.QueueFull:  # what the channel carries cannot be read more slowly
            self._finish((POLICY, "messages arrive faster than they can be handled"))

    async def _handle_messages(self) -> None:
        pace = Pace()
        while True:
            await pace.wait()
            text = await self._unread.get()
            try:
                with pace.handling():
                    if isinstance(text, bytes):
                        raise ProtocolError(
                            "bytes on the data channel", expected="JSON; sound is sent on the audio track"
                        )
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
            self._disconnected.set()
            self._finish((NORMAL, "the client disconnected"))

    async def _listen(self, live: RealtimeSession) -> End:
        """Push the client's sound into the session, until the connection ends."""
        receiving = asyncio.create_task(self._receive_audio(live))
        try:
            return await self._end
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _receive_audio(self, live: RealtimeSession) -> None:
        track = await self._audio_track
        resampler, gaps = av.AudioResampler(format="s16", layout="mono", rate=RATE), Gaps(RATE)
        with contextlib.suppress(MediaStreamError):  # the client's track has ended
            while True:
                packet = await track.recv()
                assert isinstance(packet, AudioFrame)
                silence = bytes(2 * gaps.before(packet))  # int16
                for data in (silence, *(frame.to_ndarray().tobytes() for frame in resampler.resample(packet))):
                    try:
                        live.push(data)
                    except BackpressureError as error:
                        await self._wrong(error)
        live.flush()


def add_route(
    app: FastAPI,
    state: State,
    run_connection: Callable[[WebRtcConnection], Awaitable[None]],
) -> None:
    """Add `POST /v1/webrtc` to `app`.

    Args:
        run_connection: runs a registered connection.
    """
    peers: set[asyncio.Future[None]] = set()
    networks = [ipaddress.ip_network(text) for text in state.settings.ice_networks]
    _set_bitrate(1000 * state.settings.bitrate)

    @app.post("/v1/webrtc")
    async def webrtc(offer: Offer, request: Request) -> JSONResponse:
        """Answer a WebRTC client's offer, or say why not: docs/protocol.md."""
        # A peer that is still connecting takes a place, too: else any number of them could be opened.
        place = state.take_place()
        try:
            assert state.references is not None
            await state.references.get(offer.start.reference)
            sdp = checked(offer.sdp, request.client.host if request.client else "", networks)
            connection = WebRtcConnection(state, offer.model_copy(update={"sdp": sdp}), who(request), place)
            answer = await connection.answer()
        except BaseException:
            place.release()
            raise
        running = asyncio.ensure_future(run_connection(connection))
        running.add_done_callback(lambda _: place.release())
        peers.add(running)  # else it could be collected while it runs
        running.add_done_callback(peers.discard)
        return JSONResponse(answer)


def log_errors_of_peers(loop: asyncio.AbstractEventLoop) -> None:
    """Log what fails in aiortc's own tasks in one line: a client can cause it at will, and it affects only its peer."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        work = getattr(context.get("future"), "get_coro", lambda: None)()
        code = getattr(work, "cr_code", None)
        if code is not None and Path(code.co_filename).parent.name in ("aiortc", "aioice"):
            LOG.info("a peer: %r", context.get("exception"))
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def _set_bitrate(most: int) -> None:
    """Set the bit rate of video encoders made from now on; aiortc has module constants for it.

    Encoders start at `most`; a client that reports losses brings them down to a quarter at the least.
    """
    for codec in (vpx, h264):
        vars(codec).update(DEFAULT_BITRATE=most, MAX_BITRATE=most, MIN_BITRATE=most // 4)
