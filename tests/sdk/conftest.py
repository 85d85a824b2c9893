"""What the tests of the SDK share: the shipped bundle, a drawn speaker, a voice."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from lipstream import LipSyncEngine, PreparedReference
from lipstream.bundle import SHIPPED
from lipstream.media import VideoWriter
from lipstream_training.data.clips import draw_video
from numpy.typing import NDArray


def voice(seconds: float, rate: int = 16_000, seed: int = 0) -> NDArray[np.float32]:
    """Something like speech: a buzz of changing pitch in syllables. Float32 [round(seconds * rate)] in -0.5..0.5."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    buzz = sum(np.sin(k * phase) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * t + rng.uniform(0, 6)) + 0.3, 0, 1)
    return (0.2 * buzz * syllables + 0.002 * rng.standard_normal(len(t))).astype(np.float32)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SHIPPED / "tiny" if (SHIPPED / "tiny").is_dir() else Path("/tmp/brief/smokebundle")


@pytest.fixture(scope="session")
def engine(tiny: Path) -> LipSyncEngine:
    return LipSyncEngine.load(tiny, threads=1)


@pytest.fixture(scope="session")
def speaker() -> NDArray[np.uint8]:
    """A drawn person who speaks, uint8 [31, 160, 192, 3]: a ping-pong of five whole chunks."""
    frames, _, _ = draw_video(np.random.default_rng([1, 3]), voice(31 / 25), (160, 192))
    frames.setflags(write=False)
    return frames


@pytest.fixture(scope="session")
def prepared(engine: LipSyncEngine, speaker: NDArray[np.uint8]) -> PreparedReference:
    return engine.prepare(speaker)


def write_wav(path: Path, samples: NDArray[np.float32], rate: int = 16_000) -> Path:
    """16-bit WAV of float32 [n] or [n, channels]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_video(
    path: Path, frames: Sequence[NDArray[np.uint8]], sound: NDArray[np.float32] | None = None, **options: Any
) -> Path:
    """A file of `frames`, with `sound` (float32, 16 kHz) if given. Options as `VideoWriter`'s."""
    height, width = frames[0].shape[:2]
    rate = None if sound is None else 16_000
    with VideoWriter(path, width, height, audio_rate=rate, preset="ultrafast", **options) as writer:
        if sound is not None:
            writer.write_audio(sound)
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory, speaker: NDArray[np.uint8]) -> Path:
    """A folder with talk.mp4 (31 frames, with sound), exact.mkv (the same, lossless, no sound), speech.wav (0.62 s), and bad ones."""
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
