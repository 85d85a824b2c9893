"""A client of `lipstream serve`: sends a WAV file, and writes the pictures and the sound that come back.

    pip install websockets
    python examples/websocket_client.py ws://127.0.0.1:8000/v1/session speech.wav FOLDER     # token: LIPSTREAM_TOKEN

docs/protocol.md has all messages. A client for answers of any length obeys `pause` and `resume`, as here.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import wave
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

HEADER = struct.Struct("<BBHIQ")  # kind, flags, segment, index, at
JPEG, SOUND = 1, 3


async def send(socket: ClientConnection, sound: wave.Wave_read, playing: asyncio.Event) -> None:
    while piece := sound.readframes(sound.getframerate() // 2):  # int16, little endian
        await playing.wait()
        await socket.send(piece)
    await socket.send(json.dumps({"type": "flush"}))


async def main(address: str, speech: str, folder: str) -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    token = os.environ.get("LIPSTREAM_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    playing = asyncio.Event()
    playing.set()
    with wave.open(speech) as sound, wave.open(str(out / "sound.wav"), "wb") as returned:
        if sound.getsampwidth() != 2:
            sys.exit(f"{speech} is not 16 bit")
        returned.setparams(sound.getparams())
        async with connect(address, max_size=None, additional_headers=headers) as socket:
            start = {"type": "start", "sample_rate": sound.getframerate(), "channels": sound.getnchannels()}
            await socket.send(json.dumps(start))
            sending = asyncio.create_task(send(socket, sound, playing))
            async for message in socket:
                if isinstance(message, bytes):  # `at` is the common clock of pictures and sound
                    kind, _, _, _, at = HEADER.unpack_from(message)
                    if kind == JPEG:
                        (out / f"{at:09d}.jpg").write_bytes(message[HEADER.size :])
                    elif kind == SOUND:
                        returned.writeframesraw(message[HEADER.size :])
                    continue
                said = json.loads(message)
                match said["type"]:
                    case "hello":
                        print(said["notice"])
                    case "pause":
                        playing.clear()
                    case "resume":
                        playing.set()
                    case "error":
                        print(said["message"], said["fix"], file=sys.stderr)
                        if said["fatal"]:
                            sys.exit(1)
                    case "segment_end":
                        break
            await sending


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
