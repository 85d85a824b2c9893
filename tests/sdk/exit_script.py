"""Ends while threads of LipStream are busy. Arguments: situation, CPU threads (0: default), seconds until it ends.

The fourth argument is a folder for the output of a dub.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lipstream import LipSyncEngine, LipSyncSession, RealtimePlayer, samples

SITUATION, THREADS, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
LONG = 10**6  # frames
engine = LipSyncEngine.load("tiny", threads=THREADS)


def opened(length: int | None = None) -> LipSyncSession:
    session = engine.session(samples.FACE, length=length)
    session.push_audio(np.zeros(2 * 24_000, np.int16), 24_000)
    return session


def iterate() -> None:
    for _ in opened(LONG):
        time.sleep(0.001)


def in_daemon_thread(work: Callable[[], object]) -> None:
    threading.excepthook = lambda _: None
    threading.Thread(target=work, daemon=True).start()


match SITUATION:
    case "closed player":
        player = RealtimePlayer(opened())
        time.sleep(SECONDS)
        player.close()
    case "unclosed player":
        player = RealtimePlayer(opened())
        time.sleep(SECONDS)
    case "dropped session":
        next(iter(opened(LONG)))
    case "unclosed session":
        session = opened(LONG)
        next(iter(session))
    case "iterating":
        in_daemon_thread(iterate)
        time.sleep(SECONDS)
    case "preparing":
        in_daemon_thread(lambda: engine.prepare(samples.FACE))
        time.sleep(SECONDS)
    case "dubbing":
        in_daemon_thread(lambda: engine.dub(samples.FACE, samples.SPEECH, Path(sys.argv[4]) / "out.mp4"))
        time.sleep(SECONDS)
