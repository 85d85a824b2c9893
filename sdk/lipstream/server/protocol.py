"""The messages of the WebSocket protocol, version 1: JSON text, and binary for sound and pictures.

The client sends text messages (`Start`, `Flush`, `Interrupt`, `Close`) and, as binary ones, its sound: PCM, int16,
little endian, channels interleaved. The server sends text messages and binary ones with a header (`pack`).
docs/protocol.md documents it.
"""

from __future__ import annotations

import re
import struct
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import LipStreamError, ProtocolError

VERSION = 1
HEADER = struct.Struct("<BBHIQ")
"""Kind, flags, segment modulo 65536, frame's index, samples of the session's clock before it."""
JPEG, H264, PCM = 1, 2, 3
KEY, IDLE, SPEAKING, LAST = 1, 2, 4, 8
"""Flags: key frame; idle; sound above the gate; last of a segment."""
NOTICE = "The picture is generated: the mouth is synthetic."
# RFC 6455 and its registry.
NORMAL, GOING_AWAY, POLICY, INTERNAL, TRY_AGAIN = 1000, 1001, 1008, 1011, 1013
_PATH = re.compile(r"(?<![\w./:])/(?!v1/)[^\s/:'\",]+/[^\s:'\",]*")


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Start(_Message):
    """The first message: the face to speak through, and the formats of sound and pictures."""

    type: Literal["start"]
    reference: str = Field("bundled", max_length=64)
    sample_rate: int = Field(16000, ge=4000, le=384000)
    channels: int = Field(1, ge=1, le=8)
    video: Literal["jpeg", "h264"] = "jpeg"
    idle: Literal["closed", "reference"] = "closed"
    seed: int = Field(42, ge=0, lt=2**64)


class Flush(_Message):
    """End the segment: all sound sent so far is spoken."""

    type: Literal["flush"]


class Interrupt(_Message):
    """Discard what was sent and not yet shown."""

    type: Literal["interrupt"]


class Close(_Message):
    """End the session."""

    type: Literal["close"]


ClientMessage = Start | Flush | Interrupt | Close
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])


def parse(text: str) -> ClientMessage:
    """Parse a client's text message.

    Raises:
        ProtocolError: it is not a valid message.
    """
    try:
        return _CLIENT.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(
            f"{where + ': ' if where else ''}{first['msg']}",
            expected='a JSON object with "type": "start", "flush", "interrupt" or "close"; docs/protocol.md',
        ) from error
    except RecursionError as error:  # of the JSON parser
        raise ProtocolError("the message is nested too deeply", expected="a flat JSON object") from error


def hello(server: str, references: list[str]) -> dict[str, Any]:
    """The server's first message."""
    return {"type": "hello", "protocol": VERSION, "server": server, "notice": NOTICE, "references": references}


def failure(error: LipStreamError, *, fatal: bool) -> dict[str, Any]:
    """The message for an error; after a fatal one the server closes the connection. Paths of the server are masked."""
    message, expected, fix = (_PATH.sub("(a file)", text) for text in (error.found, error.expected, error.fix))
    return {
        "type": "error",
        "code": error.code,
        "message": message,
        "expected": expected,
        "fix": fix,
        "fatal": fatal,
    }


def pack(kind: int, flags: int, segment: int, index: int, at: int, payload: bytes) -> bytes:
    """A binary message of the server.

    Args:
        kind: JPEG, H264 or PCM. flags: of KEY, IDLE, SPEAKING, LAST.
        at: samples on the session's clock before this frame.
    """
    return HEADER.pack(kind, flags, segment & 0xFFFF, index & 0xFFFFFFFF, at) + payload


def unpack(message: bytes) -> tuple[int, int, int, int, int, bytes]:
    """The arguments of `pack`, from its result."""
    return *HEADER.unpack_from(message), message[HEADER.size :]
