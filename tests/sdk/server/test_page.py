"""The page in a real browser: Debian's headless Chromium, driven by DevTools, with a WAV as microphone."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import lipstream
import numpy as np
import pytest
from client_and_server import Served
from websockets.asyncio.client import ClientConnection, connect

SPEECH = Path(lipstream.__file__).parent / "sample" / "speech.wav"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-headless-shell")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    f"--use-file-for-fake-audio-capture={SPEECH}",
    "--remote-debugging-port=0",
    "--window-size=390,844",  # a phone
]


class Tab:
    """A page, by Chromium's DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.exceptions: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self._socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                self.exceptions.append(json.dumps(message["params"]["exceptionDetails"])[:500])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def run(self, code: str) -> Any:
        """The value of an expression, awaited."""
        found = await self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, code: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not await self.run(code):
            state = await self.run(
                "[lipstream.states, lipstream.shown, document.querySelector('#problem').textContent]"
            )
            assert time.monotonic() < end, (code, state, self.exceptions)
            await asyncio.sleep(0.1)


@asynccontextmanager
async def browser(address: str, *options: str) -> AsyncIterator[Tab]:
    assert CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *OPTIONS, *options, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            for _ in range(300):
                if port_file.exists() and port_file.read_text().strip():
                    break
                await asyncio.sleep(0.1)
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                target = next(t for t in json.loads(answer.read()) if t["type"] == "page")
            async with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
                tab = Tab(socket)
                await tab.call("Runtime.enable")
                await tab.call("Page.enable")
                await tab.call("Page.navigate", url=address)
                for _ in range(100):
                    if await tab.run("typeof lipstream !== 'undefined'"):
                        break
                    await asyncio.sleep(0.1)
                yield tab
        finally:
            process.terminate()
            process.wait(20)


def test_a_face_answers_a_microphone(served: Served) -> None:
    async def talk() -> None:
        async with browser(f"http://127.0.0.1:{served.port}/") as tab:
            await tab.run("document.querySelector('#microphone').click()")
            begun = time.monotonic()
            await tab.until("lipstream.shown >= 200 && lipstream.speaking >= 50", 30 - (time.monotonic() - begun))
            mouths = np.array(await tab.run("lipstream.mouths"))
            assert np.abs(np.diff(mouths[-150:])).mean() > 0.1  # the mouth's grey level moves
            assert "speaking" in await tab.run("lipstream.states")
            assert 0 < await tab.run("lipstream.latency") < 5000

            await tab.run("lipstream.queue_before = lipstream.queue; document.querySelector('#interrupt').click()")
            await tab.until("lipstream.interrupts.length === 1")
            assert await tab.run("lipstream.queue") <= 12
            assert await tab.run("lipstream.interrupts[0] - lipstream.interrupted") < 2000

            assert served.metric("lipstream_sessions_active") == 1
            await tab.call("Page.reload")
            await asyncio.to_thread(served.wait_for, "lipstream_sessions_active", 0)
            assert not tab.exceptions

    asyncio.run(talk())
    served.wait_for("lipstream_sessions_active", 0)


def test_a_face_answers_over_webrtc(served: Served) -> None:
    async def talk() -> None:
        async with browser(f"http://127.0.0.1:{served.port}/") as tab:
            await tab.until("!document.querySelector('#transport').hidden")
            await tab.run("document.querySelector('input[value=peer]').click()")
            await tab.run("document.querySelector('#microphone').click()")
            await tab.until("lipstream.shown >= 150 && lipstream.speaking >= 50")
            mouths = np.array(await tab.run("lipstream.mouths"))
            assert np.abs(np.diff(mouths[-100:])).mean() > 0.1
            assert await tab.run("document.querySelector('#remote').srcObject.getTracks().length") == 2
            await tab.run("document.querySelector('#interrupt').click()")
            await tab.until("lipstream.interrupts.length === 1")
            assert served.metric("lipstream_sessions_active") == 1
            await tab.run("document.querySelector('#stop').click()")
            await tab.until("lipstream.states.at(-1) === 'closed'")
            assert not tab.exceptions

    asyncio.run(talk())
    served.wait_for("lipstream_sessions_active", 0)


def test_a_face_recorded_by_camera(served: Served, tmp_path: Path) -> None:
    film = tmp_path / "face.mjpeg"
    with av.open(str(SPEECH.with_name("face.mp4"))) as face, av.open(str(film), "w", format="mjpeg") as camera:
        stream = camera.add_stream("mjpeg", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 384, 320, "yuvj420p"
        for frame in face.decode(video=0):
            camera.mux(stream.encode(frame.reformat(format="yuvj420p")))
        camera.mux(stream.encode())

    async def talk() -> None:
        camera = f"--use-file-for-fake-video-capture={film}"
        async with browser(f"http://127.0.0.1:{served.port}/", camera) as tab:
            await tab.run("document.querySelector('input[value=camera]').click()")
            await tab.run("document.querySelector('#microphone').click()")
            await tab.until("lipstream.shown >= 50 && lipstream.speaking >= 10", 45)
            assert "preparing the face" in await tab.run("lipstream.states")
            assert not tab.exceptions

    asyncio.run(talk())
    served.wait_for("lipstream_sessions_active", 0)


def test_closing_the_page_leaves_no_session(served: Served) -> None:
    async def talk() -> None:
        async with browser(f"http://127.0.0.1:{served.port}/") as tab:
            await tab.run("document.querySelector('#microphone').click()")
            await tab.until("lipstream.shown >= 10")
            # Accessibility: all controls have names and can be used with the keyboard.
            unnamed = "[...document.querySelectorAll('button, input, canvas')].filter(e => !e.hidden && "
            unnamed += "!(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length"
            assert await tab.run(unnamed) == 0
            assert await tab.run("document.documentElement.scrollWidth <= innerWidth")  # no scrolling sideways
            await tab.run("dispatchEvent(new Event('pagehide'))")
            await asyncio.to_thread(served.wait_for, "lipstream_sessions_active", 0)

    asyncio.run(talk())
    served.wait_for("lipstream_sessions_active", 0)


def test_an_answer_of_any_length_is_sent_as_the_server_can_take_it(served: Served) -> None:
    async def talk() -> None:
        async with browser(f"http://127.0.0.1:{served.port}/") as tab:
            await tab.run("connect()")
            await tab.run("void speak(new Float32Array(150 * RATE).fill(0.1))")
            await tab.until("lipstream.pauses === 1 && lipstream.speaking > 50")
            assert await tab.run("document.querySelector('#problem').textContent") == ""
            await tab.run("document.querySelector('#interrupt').click()")
            await tab.until("!paused")
            await tab.until("lipstream.states.at(-1) === 'idle'", 10)  # nothing more of it is sent
            assert not tab.exceptions

    asyncio.run(talk())
    served.wait_for("lipstream_sessions_active", 0)


def test_a_hidden_page_decodes_and_keeps_nothing(served: Served) -> None:
    """A hidden page gets no animation frames."""

    async def talk() -> None:
        async with browser(f"http://127.0.0.1:{served.port}/") as tab:
            await tab.run(
                "window.open_images = 0; const real = createImageBitmap, close = ImageBitmap.prototype.close;"
                "ImageBitmap.prototype.close = function () { open_images -= this.width > 0; close.call(this); };"
                "window.createImageBitmap = async (...x) => { const y = await real(...x); open_images++; return y; }"
            )
            await tab.run("connect()")
            await tab.until("lipstream.shown > 25")
            await tab.run(
                "window.later = null; window.before = requestAnimationFrame;"
                "window.requestAnimationFrame = (draw) => { later = draw; }"
            )
            await tab.until("!!later")
            before = await tab.run("lipstream.received")
            await tab.until(f"lipstream.received > {before} + 100")
            assert await tab.run("open_images") <= 12
            assert (
                await tab.run("pictures.length") < 60
            )  # of the 100: those due later, and half a second of earlier ones
            shown = await tab.run("lipstream.shown")
            await tab.run("window.requestAnimationFrame = before; later()")
            await tab.until(f"lipstream.shown > {shown} + 25")
            assert await tab.run("open_images") <= 12
            await tab.run("document.querySelector('#stop').click()")
            await tab.until("open_images === 0")
            assert not tab.exceptions

    asyncio.run(talk())
    served.wait_for("lipstream_sessions_active", 0)


def test_a_page_with_a_token_under_a_path(start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(server: Served) -> None:
        address = f"http://127.0.0.1:{server.port}/lips/"
        async with browser(address) as tab:
            await tab.until("!document.querySelector('#access').hidden")
            await tab.run("connect().catch(() => 0)")
            assert "token" in await tab.run("document.querySelector('#problem').textContent")
            await tab.run("document.querySelector('#token').value = 'the-secret'")
            await tab.run("connect()")
            await tab.until("lipstream.shown >= 5")
        async with browser(f"{address}#token=the-secret") as tab:
            assert await tab.run("location.href") == address
            await tab.run("connect()")
            await tab.until("lipstream.shown >= 5")

    monkeypatch.setenv("LIPSTREAM_TOKEN", "the-secret")
    with start_server("--max-sessions", "2", "--root-path", "/lips") as server:
        asyncio.run(talk(server))
        assert "the-secret" not in server.log.read_text()
