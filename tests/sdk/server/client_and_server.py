"""A real server in a separate process, and sounds for it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lipstream import LipSyncEngine
from lipstream.server.references import References

from benchmarks.server_client import Server, running

RATE = 16_000


class Served(Server):
    """A server of this machine. Attributes: port, process, log."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.port, self.process, self.log = port, process, log


@contextmanager
def run_server(folder: Path, *options: str) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    # A machine that is busy with other tests is no overload.
    command = [sys.executable, "-m", "lipstream", "serve", "--port", str(port), "--max-late", "100", *options]
    with running(command, log) as process:
        served = Served(port, process, log)
        served.wait_until_ready(process, log)
        yield served


def tone(seconds: float) -> Any:
    """A substitute for a voice: a tone whose loudness rises and falls."""
    t = np.arange(int(seconds * RATE)) / RATE
    return 0.4 * np.sin(2 * np.pi * 200 * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))


def bursts(start: int, samples: int, rate: int) -> Any:
    """A track of clicks that a mouth follows: half a second of 800 Hz each second; float64 in [-1, 1]."""
    t = (start + np.arange(samples)) / rate
    return 0.3 * np.sin(2 * np.pi * 800 * t) * (t % 1 < 0.5)


def chin(image: Any) -> float:
    """Brightness below the bundled face's lower lip, which `bursts` move; `image` uint8 [H, W, 3]."""
    h, w = image.shape[:2]
    return float(image[int(h * 0.65) : int(h * 0.8), int(w * 0.45) : int(w * 0.55)].mean())


def loudness(samples: Any) -> float:
    return float(abs(np.asarray(samples, np.float64)).mean())


def lead(pictures: list[tuple[float, float]], sounds: list[tuple[float, float]], step: float = 0.01) -> float:
    """Seconds by which pictures are ahead of sound: where (time, `chin`) goes best with (time, `loudness`)."""
    (seen_at, seen), (sound_at, sound) = (np.array(x).T for x in (pictures, sounds))
    times = np.arange(max(seen_at[0], sound_at[0]) + 0.5, min(seen_at[-1], sound_at[-1]) - 0.5, step)
    leads = np.arange(-0.4, 0.4, step)
    mouth = np.interp(times, seen_at, seen)
    scores = [np.corrcoef(mouth, np.interp(times + late, sound_at, sound))[0, 1] for late in leads]
    assert max(scores) > 0.6, f"the mouth does not follow the sound: {max(scores):.2f}"
    return float(leads[int(np.argmax(scores))])


@cache
def lead_of_the_student() -> float:
    """`lead` of frames from the engine: the mouth opens slightly before its sound."""
    engine = LipSyncEngine.load("tiny")
    references = References(engine)
    references.load_permanent()
    with engine.session(references.bundled) as session:
        session.push_audio(bursts(0, 12 * RATE, RATE), RATE)
        session.flush()
        frames = list(session)
    pictures = [(frame.index / 25, chin(frame.image)) for frame in frames]
    return lead(pictures, [(frame.index / 25, loudness(frame.audio)) for frame in frames])


def is_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"
