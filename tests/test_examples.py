"""The programs in examples/ do what they say. Those of LiveKit and Pipecat are run in tests/sdk/integrations."""

from __future__ import annotations

import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from lipstream import samples
from lipstream.media import VideoReader, read_audio

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 1.5 s of the sample's, 16 bit."""
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    with wave.open(str(samples.SPEECH)) as sound, wave.open(str(path), "wb") as part:
        part.setparams(sound.getparams())
        part.writeframes(sound.readframes(3 * sound.getframerate() // 2))
    return path


def run(name: str, *arguments: str | Path, timeout: float = 120) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout).stdout


def test_quickstart(tmp_path: Path, speech: Path) -> None:
    run("quickstart.py", samples.FACE, speech, tmp_path / "out.mp4")
    assert len(list(VideoReader(tmp_path / "out.mp4"))) == 38  # 37.5 frames of sound
    sound, rate = read_audio(tmp_path / "out.mp4")
    assert len(sound) / rate == pytest.approx(1.52, abs=0.05)


def test_fastapi_app(tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fastapi_app

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with testclient.TestClient(fastapi_app.app) as client, samples.FACE.open("rb") as video, speech.open("rb") as sound:
        answer = client.post("/dub", files={"video": video, "speech": sound})
        assert answer.status_code == 200
        (tmp_path / "out.mp4").write_bytes(answer.content)
        refused = client.post("/dub", files={"video": b"no video", "speech": b"no sound"})
        assert refused.status_code == 422
        assert refused.json()["fix"]
    assert len(list(VideoReader(tmp_path / "out.mp4"))) == 38
    assert not list(tmp_path.glob("dub-*"))


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a running server."""
    command = [sys.executable, "-m", "lipstream", "serve", "--port", "0", "--max-sessions", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r"http://([^/]+)/", line):
            break
    else:
        pytest.fail("the server did not start")
    try:
        yield f"ws://{found[1]}/v1/session"
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_websocket_client(tmp_path: Path, speech: Path, server: str) -> None:
    said = run("websocket_client.py", server, speech, tmp_path / "out")
    assert "generated" in said
    with wave.open(str(speech)) as sent, wave.open(str(tmp_path / "out" / "sound.wav")) as returned:
        assert sent.readframes(sent.getnframes()) in returned.readframes(returned.getnframes())
    pictures = sorted((tmp_path / "out").glob("*.jpg"))
    assert len(pictures) >= 30
    assert cv2.imread(str(pictures[-1])).shape == (320, 384, 3)


@pytest.mark.slow
def test_voice_agent() -> None:
    events = re.findall(r"(\d+\.\d+) s: (.+)", run("voice_agent.py"))
    names = [name for _, name in events]
    assert names.count("interrupted") == 1
    interrupted = names.index("interrupted")
    assert "speaks" in names[:interrupted]
    assert "speaks" in names[interrupted:]
    assert names[-1] == "is silent"
    assert float(events[interrupted][0]) == pytest.approx(2.96, abs=0.01)
