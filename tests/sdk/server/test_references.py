"""Faces of the operator, and uploads that replicas share."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cv2
import lipstream
import numpy as np
import pytest
from client_and_server import Served
from lipstream.errors import ConfigError, MediaOpenError, UnavailableError, UnknownReferenceError
from lipstream.media.sandbox import SandboxedReader
from lipstream.server.references import References
from lipstream.server.settings import Settings

from benchmarks.server_client import Client

FACE = Path(lipstream.__file__).parent / "sample" / "face.mp4"


class Engine:
    """Prepares nothing but the file's content."""

    def prepare(self, file: str, **_: Any) -> bytes:
        return Path(file).read_bytes()


def references(**options: Any) -> References:
    return References(Engine(), sandbox=False, **options)  # type: ignore[arg-type]


async def body() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


def test_replicas_share_a_folder_until_an_upload_expires(tmp_path: Path) -> None:
    async def talk() -> None:
        one, two = (references(folder=tmp_path) for _ in range(2))
        name, prepared = await one.upload(body())
        assert await two.get(name) == prepared == b"onetwo"
        os.utime(tmp_path / name, (0, 0))
        three = references(folder=tmp_path)
        with pytest.raises(UnknownReferenceError):
            await three.get(name)
        assert list(tmp_path.iterdir()) == []
        for wrong in ("../secret", "/etc/passwd", ".", ""):
            with pytest.raises(UnknownReferenceError):
                await three.get(wrong)

    asyncio.run(talk())


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="has no priorities")
def test_live_sessions_go_before_the_decoding_of_uploads() -> None:
    class Prepares:
        def prepare(self, source: SandboxedReader, **_: Any) -> int:
            return os.getpriority(os.PRIO_PROCESS, source._running[0]._process.pid or 0)

    async def video() -> AsyncIterator[bytes]:
        yield FACE.read_bytes()

    async def niceness() -> Any:
        return (await References(Prepares()).upload(video()))[1]  # type: ignore[arg-type]

    assert asyncio.run(niceness()) > os.getpriority(os.PRIO_PROCESS, 0)


def test_an_upload_that_does_not_end_delays_no_other() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"begun"
        await asyncio.Event().wait()

    async def talk() -> None:
        uploads = references()
        held = [asyncio.ensure_future(uploads.upload(endless(), f"10.0.0.{i // 2}")) for i in range(7)]
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError):  # two of one client
            await uploads.upload(body(), "10.0.0.0")
        _, prepared = await asyncio.wait_for(uploads.upload(body()), 5)
        assert prepared == b"onetwo"
        held.append(asyncio.ensure_future(uploads.upload(endless())))
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError, match="too many uploads"):
            await uploads.upload(body())
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await uploads.upload(body())

    asyncio.run(talk())


def test_uploads_of_one_client_do_not_drop_those_of_another() -> None:
    async def talk() -> None:
        uploads = references(most=4)
        honest, _ = await uploads.upload(body(), "10.0.0.1")
        names = [(await uploads.upload(body(), "10.0.0.2"))[0] for _ in range(20)]
        await uploads.get(honest)
        for name in names[-3:]:
            await uploads.get(name)
        with pytest.raises(UnknownReferenceError):
            await uploads.get(names[-4])

    asyncio.run(talk())


def test_a_client_that_leaves_is_not_decoded_for() -> None:
    """Its video is endless; the engine would go on with it."""

    class Patient:
        def prepare(self, reader: SandboxedReader, **_: Any) -> None:
            for _ in itertools.cycle([0]):
                list(reader.pictures())

    async def face() -> AsyncIterator[bytes]:
        yield FACE.read_bytes()

    async def gone() -> bool:
        return True

    async def talk() -> None:
        uploads = References(Patient())  # type: ignore[arg-type]
        with pytest.raises(MediaOpenError, match="stopped"):
            await asyncio.wait_for(uploads.upload(face(), gone=gone), 30)

    asyncio.run(talk())


@pytest.mark.parametrize("names", [("bundled",), ("a", "a"), ("a/b",), ("",)])
def test_names_of_faces_are_checked(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="reference"):
        Settings(references=tuple((name, "x.mp4") for name in names))


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        Settings(reference_dir=str(tmp_path / "none"))


def test_own_faces_and_uploads_of_another_replica(start_server: Callable[..., Any], tmp_path: Path) -> None:
    async def picture(server: Served, reference: str) -> tuple[list[str], Any]:
        client = await Client.open(server, reference=reference)
        received = await client.until(lambda h: len(h.pictures) >= 3)
        await client.close()
        image = cv2.imdecode(np.frombuffer(received.pictures[0][3], np.uint8), cv2.IMREAD_COLOR)
        return received.said[0]["references"], image

    options = ["--max-sessions", "1", "--reference", f"anna={FACE}", "--reference-dir", str(tmp_path)]
    with start_server(*options) as first, start_server(*options) as second:
        address = f"http://127.0.0.1:{first.port}/v1/references"
        with urllib.request.urlopen(address, FACE.read_bytes(), timeout=60) as answer:
            name = json.loads(answer.read())["reference"]
        names, anna = asyncio.run(picture(second, "anna"))
        assert names == ["bundled", "anna"]
        first.wait_for("lipstream_sessions_active", 0)
        second.wait_for("lipstream_sessions_active", 0)
        _, uploaded = asyncio.run(picture(second, name))
        assert np.abs(anna.astype(int) - uploaded).mean() < 2
