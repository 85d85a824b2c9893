"""Faces of the operator, and uploads that replicas share."""

from __future__ import annotations

import asyncio
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
from lipstream.errors import ConfigError, UnknownReferenceError
from lipstream.server.references import References
from lipstream.server.settings import Settings

from benchmarks.server_client import Client

FACE = Path(lipstream.__file__).parent / "sample" / "face.mp4"


class Engine:
    """Prepares nothing but the file's content."""

    def prepare(self, file: str, **_: Any) -> bytes:
        return Path(file).read_bytes()


async def body() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


def test_replicas_share_a_folder_until_an_upload_expires(tmp_path: Path) -> None:
    async def talk() -> None:
        one, two = (References(Engine(), folder=tmp_path) for _ in range(2))  # type: ignore[arg-type]
        name, prepared = await one.upload(body())
        assert await two.get(name) == prepared == b"onetwo"
        os.utime(tmp_path / name, (0, 0))
        three = References(Engine(), folder=tmp_path)  # type: ignore[arg-type]
        with pytest.raises(UnknownReferenceError):
            await three.get(name)
        assert list(tmp_path.iterdir()) == []
        for wrong in ("../secret", "/etc/passwd", ".", ""):
            with pytest.raises(UnknownReferenceError):
                await three.get(wrong)

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
