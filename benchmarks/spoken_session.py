"""One session that speaks real speech over WebSocket or WebRTC, and what was wrong with what came back."""

from __future__ import annotations

import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from lipstream.samples import SPEECH
from lipstream.server.protocol import IDLE
from numpy.typing import NDArray

from .server_client import Client, Received, Server
from .webrtc_client import RATE, Peer, Voice

Samples = NDArray[np.int16]
SECONDS = 5
"""Of speech, in each session."""
INTERRUPTED_AT = 2
"""Seconds of speech that came back when a session is interrupted; then its speech is sent again."""
FPS = 25
WINDOW, ALIKE = 0.5, 0.6
"""Seconds of sound that are looked for in what came back over WebRTC, and the least correlation with it."""


LOUD = 200
"""Mean magnitude of an int16 sample of speech."""


@dataclass
class Session:
    """What one session was like.

    Attributes:
        faults: what was wrong. frames: seconds of sound times 25. pictures: received. gaps: idle frames inside speech.
        late: seconds after the best of its session, for each piece of sound. first: seconds until speech comes back.
        sound_lost: share of the sound that did not arrive. closed: whether the server's last message arrived.
    """

    kind: str
    interrupted: bool
    faults: list[str] = field(default_factory=list)
    frames: int = 0
    pictures: int = 0
    gaps: int = 0
    late: list[float] = field(default_factory=list)
    first: float = 0.0
    sound_lost: float = 0.0
    recognised: float = 1.0
    closed: bool = True
    degraded: bool = False

    def check(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


def speech() -> tuple[Samples, int]:
    """The first seconds of the sample's speech, int16 [samples], and their rate."""
    with wave.open(str(SPEECH)) as file:
        rate = file.getframerate()
        return np.frombuffer(file.readframes(SECONDS * rate), np.int16), rate


def spoken_frames(received: Received) -> list[int]:
    """Numbers of the frames with the client's sound."""
    return [number for number, sound in enumerate(received.sounds) if not sound[2] & IDLE]


async def over_websocket(server: Server, video: str, interrupted: bool, reference: str) -> Session:
    """A session whose speech is sent as fast as the network takes it, as an answer of a TTS is."""
    session = Session(f"WebSocket, {video}", interrupted)
    sound, rate = speech()
    pieces = [sound[at : at + rate] for at in range(0, len(sound), rate)]

    async def say() -> None:
        for piece in pieces:
            await client.socket.send(piece.tobytes())
        await client.say("flush")

    client = await Client.open(server, reference=reference, video=video, sample_rate=rate)
    try:
        begun = time.monotonic()
        await say()
        wanted = [sound]
        if interrupted:
            await client.until(lambda r: len(spoken_frames(r)) >= INTERRUPTED_AT * FPS)
            await client.say("interrupt")
            await client.until(lambda r: "interrupted" in r.types())
            await say()
            wanted = [sound, sound]
        await client.until(lambda r: r.types().count("segment_end") == 1)
        frames = len(client.received.sounds)
        await client.until(lambda r: len(r.sounds) >= frames + FPS)
        await client.say("close")
        await client.rest()
    finally:
        await client.close()
    received = client.received
    session.check(client.socket.close_code == 1000, f"closed with {client.socket.close_code}")
    session.check("error" not in received.types(), f"errors: {[x for x in received.said if x['type'] == 'error']}")
    session.first = received.arrived[spoken_frames(received)[0]] - begun
    session.degraded = "degraded" in received.types()
    check_sound(session, received, wanted, rate)
    check_pictures(session, received, video)
    return session


def check_sound(session: Session, received: Received, wanted: list[Samples], rate: int) -> None:
    """Without gaps on the clock, and, sample by sample, what was sent; before an interruption a part of it."""
    session.frames = len(received.sounds)
    clock = [(index, index * rate // FPS, (index + 1) * rate // FPS) for index in range(session.frames)]
    found = [(index, at, at + len(data) // 2) for index, at, _, data in received.sounds]
    session.check(found == clock, "the clock has a gap")
    ends = [m["at"] for m in received.said if m["type"] == "interrupted"]
    for utterance, sound in enumerate(wanted):
        begin = ends[utterance - 1] if utterance else 0
        end = ends[utterance] if utterance < len(ends) else received.sounds[-1][1] + 1
        numbers = [number for number in spoken_frames(received) if begin <= received.sounds[number][1] < end]
        spoken = np.frombuffer(b"".join(received.sounds[number][3] for number in numbers), np.int16)
        if utterance < len(ends):
            session.check(np.array_equal(spoken, sound[: len(spoken)]), "sound before the interruption differs")
        else:
            session.check(np.array_equal(spoken[: len(sound)], sound), "sound differs")
            session.check(not spoken[len(sound) :].any(), "sound after the speech")
        session.gaps += numbers[-1] - numbers[0] + 1 - len(numbers)
    session.late = late(received.arrived, [at / rate for _, at, _, _ in received.sounds])


def check_pictures(session: Session, received: Received, video: str) -> None:
    """Each belongs to a sound that was received, in order; all of them can be decoded."""
    session.pictures = len(received.pictures)
    indices = [index for index, *_ in received.pictures]
    session.check(indices == sorted(set(indices)), "pictures out of order")
    session.check({p[:2] for p in received.pictures} <= {s[:2] for s in received.sounds}, "pictures without sound")
    decoder: Any = av.CodecContext.create("mjpeg" if video == "jpeg" else "h264", "r")
    packets = [av.Packet(data) for *_, data in received.pictures]
    decoded = sum(len(decoder.decode(packet)) for packet in [*packets, None])
    session.check(decoded == session.pictures, f"{decoded} of {session.pictures} pictures can be decoded")


async def over_webrtc(server: Server, video: str, interrupted: bool, reference: str) -> Session:
    """A session whose speech is a microphone's."""
    session = Session(f"WebRTC, {video}", interrupted)
    sound, rate = speech()
    said = sound = np.repeat(sound, RATE // rate)
    spoken_at: list[int] = []

    def voice(at: int, count: int) -> Samples:
        taken = said[at - spoken_at[0] :][:count] if spoken_at else said[:0]
        return np.pad(taken, (0, count - len(taken)))

    track = Voice(voice)
    peer = Peer(track)
    try:
        await peer.open(server, codec=video, start={"type": "start", "reference": reference})
        await peer.until(lambda p: "started" in p.types() and bool(p.pictures) and bool(p.sounds))
        spoken_at.append(track.at)
        begun, end = time.monotonic(), track.at + (SECONDS + 1) * RATE
        if interrupted:
            await peer.until(lambda p: track.at >= spoken_at[0] + INTERRUPTED_AT * RATE)
            peer.channel.send('{"type": "interrupt"}')
            await peer.until(lambda p: "interrupted" in p.types())
            sound = sound[track.at - spoken_at[0] :]  # what was sent before it is discarded, or was played
        await peer.until(lambda p: track.at >= end and quiet(p))
        peer.channel.send('{"type": "close"}')
        try:
            await peer.until(lambda p: "closed" in p.types(), 10)
        except TimeoutError:
            session.closed = False
    finally:
        await peer.close()
    session.check("error" not in peer.types(), f"errors: {[x for x in peer.said if x['type'] == 'error']}")
    session.degraded = "degraded" in peer.types()
    pts = np.array([int(frame.pts or 0) for frame in peer.sounds])
    steps = np.diff(pts)
    session.check(bool((steps > 0).all()) and not (steps % (RATE // 50)).any(), "the clock of sound goes wrong")
    video_steps = np.diff([int(frame.pts or 0) for frame in peer.pictures])
    session.check(bool((video_steps > 0).all()) and not (video_steps % 3600).any(), "the clock of pictures goes wrong")
    whole = (pts[-1] - pts[0]) // (RATE // 50) + 1
    session.sound_lost = 1 - len(pts) / whole
    session.frames, session.pictures = int(whole) // 2, len(peer.pictures)
    session.late = late(peer.sound_times, (pts / RATE).tolist())
    heard = np.zeros(int(whole) * RATE // 50, np.float64)
    for frame, at in zip(peer.sounds, pts - pts[0], strict=True):
        heard[at : at + RATE // 50] = frame.to_ndarray().reshape(-1, 2)[:, 0]
    levels = map(loudness, peer.sounds)
    loud = (at for at, level in zip(peer.sound_times, levels, strict=True) if at > begun and level > LOUD)
    session.first = next(loud, begun) - begun
    session.recognised = recognised(sound.astype(np.float64), heard)
    return session


def loudness(frame: Any) -> float:
    return float(abs(frame.to_ndarray().astype(float)).mean())


def quiet(peer: Peer) -> bool:
    """Whether the last one and a half seconds that were received are silent."""
    return all(loudness(frame) < LOUD for frame in peer.sounds[-75:])


def recognised(sound: NDArray[np.float64], heard: NDArray[np.float64]) -> float:
    """The share of `sound` whose pieces of `WINDOW` seconds are in `heard`, one after the other; both at `RATE`."""
    sound, heard = (x.reshape(-1, 6).mean(1) for x in (sound[: len(sound) // 6 * 6], heard[: len(heard) // 6 * 6]))
    size = int(WINDOW * RATE / 6)
    energy = np.sqrt(np.convolve(heard**2, np.ones(size), "valid"))
    found = wanted = after = 0
    for at in range(0, len(sound) - size + 1, size):
        piece = sound[at : at + size]
        norm = float(np.linalg.norm(piece))
        if norm < 300 * size**0.5:  # a pause
            continue
        wanted += 1
        span = heard[after:]
        if len(span) < size:
            continue
        length = 1 << (len(span) + size).bit_length()
        product = np.fft.irfft(np.fft.rfft(span, length) * np.conj(np.fft.rfft(piece, length)), length)
        scores = product[: len(span) - size + 1] / (norm * np.maximum(energy[after:], norm / 10))
        best = int(scores.argmax())
        if scores[best] >= ALIKE:
            found += 1
            after += best + size // 2
    return found / max(wanted, 1)


def late(arrived: Sequence[float], at: Sequence[float]) -> list[float]:
    """Seconds by which each piece of sound is later than the one that was soonest; both in seconds."""
    delays = np.array(arrived) - np.array(at)
    return [float(x) for x in delays - delays.min()]
