"""Sessions through a real server and a real WebSocket client."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lipstream
import numpy as np
import pytest
from client_and_server import RATE, Served, is_jpeg, tone
from lipstream.server.protocol import IDLE, LAST
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from benchmarks.server_client import Client

ACTIVE = "lipstream_sessions_active"


def test_a_session_speaks_and_idles(served: Served) -> None:
    async def talk() -> None:
        client = await Client.open(served)
        received = await client.until(lambda h: len(h.pictures) >= 10)
        assert received.said[0]["notice"]
        assert all(flags & IDLE for *_, flags, _ in received.pictures)
        sound = tone(2.0)
        await client.speak(sound)
        await client.say("flush")
        received = await client.until(lambda h: "segment_end" in h.types() and len(h.pictures) > 80)
        assert [index for index, *_ in received.pictures] == list(range(len(received.pictures)))
        assert all(is_jpeg(data) for *_, data in received.pictures)
        speech = [sound for sound in received.sounds if not sound[2] & IDLE]
        assert len(speech) == 50
        assert speech[-1][2] & LAST
        given = np.concatenate([np.frombuffer(data, "<i2") for *_, data in speech])
        np.testing.assert_array_equal(given, np.trunc(sound * 32767))  # every sample, in order
        at = 0
        for _, stamp, _, data in received.sounds:  # one clock, by sample counts
            assert stamp == at
            at += len(data) // 2
        states = [message["state"] for message in received.said if message["type"] == "state"]
        assert states[:2] == ["idle", "speaking"]
        assert states[-1] == "idle"
        await client.say("close")
        with pytest.raises(ConnectionClosed) as closed:
            await client.until(lambda h: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000

    asyncio.run(talk())
    served.wait_for(ACTIVE, 0)


def test_h264_stereo_at_another_rate(served: Served) -> None:
    async def talk() -> None:
        import av

        client = await Client.open(served, video="h264", sample_rate=44_100, channels=2, idle="reference")
        received = await client.until(lambda h: len(h.pictures) >= 40)
        decoder = av.CodecContext.create("h264", "r")
        frames: list[Any] = []
        for *_, data in received.pictures:
            frames += decoder.decode(av.Packet(data))  # type: ignore[attr-defined]
        assert len(frames) >= 39
        assert (frames[0].width, frames[0].height) == (received.said[1]["width"], received.said[1]["height"])
        assert {len(data) for *_, data in received.sounds} == {2 * 2 * 1764}
        await client.close()

    asyncio.run(talk())


def test_an_interrupt_empties_the_queue(served: Served) -> None:
    async def talk() -> None:
        client = await Client.open(served)
        await client.speak(tone(8.0))
        await client.until(lambda h: any(not flags & IDLE for *_, flags, _ in h.pictures))
        before = len(client.received.sounds)
        await client.say("interrupt")
        received = await client.until(lambda h: "interrupted" in h.types())
        at = next(message["at"] for message in received.said if message["type"] == "interrupted")
        count = len(received.sounds)
        received = await client.until(lambda h: len(h.sounds) >= count + 15)
        assert all(flags & IDLE for *_, flags, _ in received.sounds[count:])  # no more speech
        assert count - before < 12
        assert received.sounds[count][1] == at  # the clock continues
        await client.close()

    asyncio.run(talk())
    served.wait_for(ACTIVE, 0)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("nonsense", "protocol"),
        ('{"type": "dance"}', "protocol"),
        ('{"type": "start"}', "protocol"),
        (b"\0" * 2 * RATE * 61, "backpressure"),
    ],
)
def test_an_invalid_message_does_not_end_the_session(served: Served, message: str | bytes, code: str) -> None:
    async def talk() -> None:
        client = await Client.open(served, sample_rate=4000 if code == "backpressure" else RATE)
        if code == "backpressure":  # more than a minute of sound at once
            for _ in range(4):
                await client.socket.send(b"\0" * 2 * 4000 * 20)
        else:
            await client.socket.send(message)
        received = await client.until(lambda h: "error" in h.types())
        (error,) = [said for said in received.said if said["type"] == "error"]
        assert error["code"] == code
        assert not error["fatal"]
        count = len(received.pictures)
        await client.until(lambda h: len(h.pictures) > count + 5)
        await client.close()

    asyncio.run(talk())


def test_other_messages_before_start_are_rejected(served: Served) -> None:
    async def talk() -> None:
        async with connect(served.address) as socket:
            assert json.loads(await socket.recv())["type"] == "hello"
            for wrong in (b"\0\0", '{"type": "flush"}', "{"):
                await socket.send(wrong)
                assert json.loads(await socket.recv())["code"] == "protocol"
            await socket.send('{"type": "start", "reference": "unknown"}')
            answer = json.loads(await socket.recv())
            assert answer["code"] == "unknown_reference"
            assert answer["fatal"]
            with pytest.raises(ConnectionClosed):
                await socket.recv()

    asyncio.run(talk())
    served.wait_for(ACTIVE, 0)


def test_one_session_too_many_is_refused_and_the_others_continue(served: Served) -> None:
    async def talk() -> None:
        clients = [await Client.open(served, idle="reference") for _ in range(3)]
        async with connect(served.address) as socket:
            refusal = json.loads(await socket.recv())
            assert (refusal["type"], refusal["code"], refusal["fatal"]) == ("error", "unavailable", True)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        assert "3 sessions" in closed.value.rcvd.reason
        await asyncio.gather(*(client.until(lambda h: len(h.pictures) > 30) for client in clients))
        await clients.pop().close()
        again = await asyncio.to_thread(served.wait_for, ACTIVE, 2)
        assert again is None
        clients.append(await Client.open(served))
        for client in clients:
            await client.close()

    asyncio.run(talk())
    served.wait_for(ACTIVE, 0)
    assert served.metric('lipstream_sessions_rejected_total{reason="capacity"}') >= 1


def test_slow_and_vanished_clients_do_not_affect_others(served: Served) -> None:
    async def talk() -> None:
        good = await Client.open(served, idle="reference")
        deaf = await connect(served.address, max_size=None, max_queue=1)
        await deaf.send('{"type": "start", "idle": "reference"}')
        gone = await Client.open(served, idle="reference")
        gone.socket.transport.abort()
        begun = time.monotonic()
        count = len(good.received.pictures)
        received = await good.until(lambda h: len(h.pictures) >= count + 100)
        assert time.monotonic() - begun < 8  # four seconds of pictures
        indices = [index for index, *_ in received.pictures]
        assert indices == list(range(len(indices)))
        await good.close()
        deaf.transport.abort()

    asyncio.run(talk())
    served.wait_for(ACTIVE, 0)


def test_a_session_with_an_uploaded_face(served: Served, tmp_path: Path) -> None:
    def post(body: bytes) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"http://127.0.0.1:{served.port}/v1/references", body, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    face = (Path(lipstream.__file__).parent / "sample" / "face.mp4").read_bytes()
    status, found = post(face)
    assert status == 200

    async def talk() -> None:
        client = await Client.open(served, reference=found["reference"])
        received = await client.until(lambda h: len(h.pictures) >= 15)
        assert (received.said[1]["width"], received.said[1]["height"]) == (found["width"], found["height"])
        await client.close()

    asyncio.run(talk())
    status, found = post(b"Once upon a time " * 100)
    assert (status, found["code"]) == (422, "media_open")
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.putrequest("POST", "/v1/references")
    connection.putheader("Content-Length", str(65 << 20))
    connection.endheaders()
    answer = connection.getresponse()  # before a byte of it was sent
    assert (answer.status, json.loads(answer.read())["code"]) == (413, "upload_too_large")


def test_other_endpoints(served: Served) -> None:
    assert json.loads(served.get("/v1/health/live")) == {"status": "live"}
    assert json.loads(served.get("/v1/version"))["bundle"] == "tiny"
    assert "LipStream" in served.get("/")
    assert "/v1/references" in served.get("/openapi.json")
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        served.get("/docs")
    assert json.loads(missing.value.read())["type"] == "error"
    assert "http" not in served.get("/").split("<script>")[0].replace("utf-8", "")  # nothing of another site
    assert "lipstream_build_info{" in served.get("/v1/metrics")


def test_sigterm_closes_sessions_and_refuses_new_ones(start_server: Callable[..., Any]) -> None:
    async def talk(server: Served) -> None:
        client = await Client.open(server, idle="reference")
        await client.until(lambda h: len(h.pictures) > 5)
        server.process.send_signal(signal.SIGTERM)
        received = await client.until(lambda h: "closing" in h.types())
        assert received.said[-1]["seconds"] == 2
        async with connect(server.address) as socket:
            assert json.loads(await socket.recv())["code"] == "unavailable"
            with pytest.raises(ConnectionClosed) as refused:
                await socket.recv()
        assert refused.value.rcvd is not None
        assert refused.value.rcvd.code == 1013
        with pytest.raises(ConnectionClosed) as closed:
            await client.until(lambda h: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001

    with start_server("--max-sessions", "1", "--drain", "2") as server:
        asyncio.run(talk(server))
        assert server.process.wait(20) == 0


def test_a_token_and_limits(start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    header = {"Authorization": "Bearer the-secret"}

    async def denied(server: Served, query: str = "", **more: Any) -> tuple[int, str]:
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.address + query, **more)
        answer = refused.value.response
        return answer.status_code, json.loads(answer.body or b"")["code"]

    def ask(server: Served, headers: dict[str, str]) -> dict[str, Any]:
        address = f"http://127.0.0.1:{server.port}/v1/tickets"
        with urllib.request.urlopen(urllib.request.Request(address, b"", headers), timeout=10) as answer:
            return dict(json.loads(answer.read()))

    async def talk(server: Served) -> None:
        assert await denied(server) == (401, "token")
        assert await denied(server, "?token=the-secret") == (401, "token")
        evil: Any = "http://evil.example"
        assert await denied(server, additional_headers=header, origin=evil) == (403, "origin")
        with pytest.raises(urllib.error.HTTPError) as wrong:
            await asyncio.to_thread(ask, server, {"Authorization": "Bearer other"})
        assert (wrong.value.code, json.loads(wrong.value.read())["code"]) == (401, "token")

        ticket = (await asyncio.to_thread(ask, server, header))["ticket"]
        async with connect(f"{server.address}?ticket={ticket}") as socket:
            assert json.loads(await socket.recv())["type"] == "hello"
        assert await denied(server, f"?ticket={ticket}") == (401, "token")  # it was used

        async with connect(server.address, additional_headers=header, max_size=None) as socket:
            await socket.send('{"type": "start", "idle": "reference"}')
            client = Client(socket)
            with pytest.raises(ConnectionClosed) as ended:
                await client.until(lambda h: False)
        assert ended.value.rcvd is not None
        assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1000, "no sound for 2 s")
        name = next(message["session"] for message in client.received.said if message["type"] == "started")
        lines = server.log.read_text().splitlines()
        assert len([line for line in lines if f"session {name}: 1000 no sound for 2 s" in line]) == 1
        assert sum("refused" in line for line in lines) == 5

    monkeypatch.setenv("LIPSTREAM_TOKEN", "the-secret")
    with start_server("--max-sessions", "1", "--idle-limit", "2") as server:
        asyncio.run(talk(server))
        assert "the-secret" not in server.log.read_text()
        assert "ticket=" not in server.log.read_text()
