"""The protocol's messages, and the server's rules without a network."""

from __future__ import annotations

import json
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.errors import MediaOpenError, ProtocolError
from lipstream.media import Picture
from lipstream.server.frame_encoder import frame_encoder
from lipstream.server.protocol import Close, Flush, Interrupt, Start, failure, pack, parse, unpack


def test_messages_are_parsed() -> None:
    start = parse('{"type": "start", "sample_rate": 48000, "channels": 2, "video": "h264", "idle": "reference"}')
    assert start == Start(type="start", sample_rate=48000, channels=2, video="h264", idle="reference")
    assert parse('{"type": "flush"}') == Flush(type="flush")
    assert parse('{"type": "interrupt"}') == Interrupt(type="interrupt")
    assert parse('{"type": "close"}') == Close(type="close")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"start"',
        "{}",
        '{"type": "dance"}',
        '{"type": "start", "sample_rate": 0}',
        '{"type": "start", "sample_rate": "fast"}',
        '{"type": "start", "channels": 9}',
        '{"type": "start", "video": "gif"}',
        '{"type": "start", "color": "red"}',
        '{"type": "flush", "now": true}',
        '{"type": "start", "seed": -1}',
        "[" * 100_000,
    ],
)
def test_invalid_messages_are_rejected_with_a_reason(text: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        parse(text)
    assert raised.value.found
    assert len(raised.value.found) < 500


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.one_of(
    st.text(max_size=200),
    st.builds(json.dumps, VALUES),
    st.builds(
        lambda kind, more: json.dumps({"type": kind, **more}),
        st.sampled_from(["start", "flush", "interrupt", "close", "hello", ""]),
        st.dictionaries(
            st.sampled_from(["sample_rate", "channels", "video", "idle", "seed", "reference", "x"]), VALUES
        ),
    ),
)


@settings(max_examples=1000, deadline=None)
@given(MESSAGES)
def test_any_message_is_parsed_or_rejected(text: str) -> None:
    try:
        assert isinstance(parse(text), Start | Flush | Interrupt | Close)
    except ProtocolError as error:
        json.dumps(str(error))


@given(st.integers(1, 3), st.integers(0, 15), st.integers(0, 10**6), st.integers(0, 2**32 - 1), st.integers(0, 2**63))
def test_unpack_inverts_pack(kind: int, flags: int, segment: int, index: int, at: int) -> None:
    assert unpack(pack(kind, flags, segment, index, at, b"xyz")) == (kind, flags, segment % 65536, index, at, b"xyz")


@pytest.mark.parametrize("kind", ["jpeg", "h264"])
@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_encoded_pictures_can_be_decoded(kind: str, size: tuple[int, int]) -> None:
    """Decoded by an independent decoder."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    images = [np.stack([x * 2, y * 2, x + y + i], -1).astype(np.uint8) for i in range(4)]
    made = frame_encoder(kind, width, height)
    decoder = av.CodecContext.create("mjpeg" if kind == "jpeg" else "h264", "r")
    decoded: list[Any] = []
    for i, image in enumerate(images):
        data, key = made.encode(Picture.of(image))
        assert key == (kind == "jpeg" or i == 0)
        decoded += decoder.decode(av.Packet(data))  # type: ignore[attr-defined]
    decoded += decoder.decode(None)  # type: ignore[attr-defined]
    assert len(decoded) == 4
    for frame, image in zip(decoded, images, strict=True):
        found = frame.to_ndarray(format="rgb24").astype(int)
        assert (
            np.abs(
                found - np.pad(image, ((0, found.shape[0] - height), (0, found.shape[1] - width), (0, 0)), "edge")
            ).mean()
            < 8
        )


def test_clients_see_no_path_of_the_server() -> None:
    error = MediaOpenError("cannot open /tmp/x/upload.video: invalid data", fix="see POST /v1/references, docs/a.md")
    message = failure(error, fatal=False)
    assert message["message"] == "cannot open (a file): invalid data"
    assert message["fix"] == error.fix
