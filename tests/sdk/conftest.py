"""Fixtures of the SDK's tests: the shipped bundle, a drawn speaker, a voice."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from lipstream import LipSyncEngine, PreparedReference
from lipstream.bundle import SHIPPED
from lipstream_training.data.clips import draw_video
from numpy.typing import NDArray
from voice_and_video import voice, write_video, write_wav


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of the shipped bundle."""
    return SHIPPED / "tiny"


@pytest.fixture(scope="session")
def engine() -> LipSyncEngine:
    # One thread: on a loaded machine, two slow each other down.
    return LipSyncEngine.load("tiny", threads=1)


@pytest.fixture(scope="session")
def speaker() -> NDArray[np.uint8]:
    """A drawn person who speaks, uint8 [31, 160, 192, 3]: a ping-pong of five whole chunks."""
    frames, _, _ = draw_video(np.random.default_rng([1, 3]), voice(31 / 25), (160, 192))
    frames.setflags(write=False)
    return frames


@pytest.fixture(scope="session")
def prepared(engine: LipSyncEngine, speaker: NDArray[np.uint8]) -> PreparedReference:
    return engine.prepare(speaker)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory, speaker: NDArray[np.uint8]) -> Path:
    """A folder: talk.mp4 (31 frames and sound), exact.mkv (lossless, no sound), speech.wav (0.62 s), and bad files."""
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "talk.mp4", speaker, voice(31 / 25))
    write_video(folder / "exact.mkv", speaker, lossless=True)
    write_wav(folder / "speech.wav", voice(0.62, seed=1))
    write_video(folder / "grey.mp4", np.full((12, 120, 160, 3), 90, np.uint8))
    whole = (folder / "talk.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "text.mp4").write_text("Once upon a time there was a video.\n" * 50)
    write_wav(folder / "empty.wav", np.zeros(0, np.float32))
    write_wav(folder / "short.wav", voice(0.02))
    with av.open(str(folder / "nan.wav"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
        samples = voice(1.0)
        samples[9000] = np.nan
        frame = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return folder
