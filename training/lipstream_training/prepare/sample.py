"""One clip of a shard, and its encoding and decoding."""

from __future__ import annotations

import io
import json
import tempfile
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lipstream.media import VideoReader, VideoWriter
from lipstream_evaluate.media import RATE
from numpy.typing import NDArray
from safetensors.numpy import load, save

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """A clip to train on.

    Attributes:
        target: uint8 [81, S, S, 3] RGB aligned crops; the mouth says `sound`.
        reference: uint8 [81, S, S, 3]: the same person, from another part of the video; for a drawn person the same
            moment with another mouth.
        identity: uint8 [S, S, 3], a picture of the reference; of a drawn person one of another moment.
        sound: float32 [(10 + 81) * 640 + 800] at 16 kHz; frame f covers the samples from 640 (10 + f) on.
        about: its source, and what the filters measured.
        tensors: latents and features computed in advance (see `Encoder.encode`), and for drawn people `mouth` [81, 4],
            the rule's shapes.
    """

    target: Frames
    reference: Frames
    identity: Frames
    sound: NDArray[np.float32]
    about: dict[str, Any]
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)


def video_bytes(frames: Sequence[NDArray[np.uint8]] | Frames, kind: str) -> bytes:
    """Crops uint8 [size, size, 3] as a file of `Settings.kind`."""
    if kind == "npy":
        target = io.BytesIO()
        np.save(target, np.asarray(frames))
        return target.getvalue()
    size = frames[0].shape[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"crops.{kind}"
        with VideoWriter(path, size, size, crf=13) as writer:
            for frame in frames:
                writer.write(frame)
        return path.read_bytes()


def video_frames(data: bytes, kind: str) -> Frames:
    """What `video_bytes` wrote, uint8 [n, size, size, 3]."""
    if kind == "npy":
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"crops.{kind}"
        path.write_bytes(data)
        return np.stack(list(VideoReader(path)))


def picture_bytes(rgb: NDArray[np.uint8]) -> bytes:
    """A picture as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def picture(data: bytes) -> NDArray[np.uint8]:
    """What `picture_bytes` wrote."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)


def sound_bytes(samples: NDArray[np.float32]) -> bytes:
    """Samples at 16 kHz as WAV of 16 bits."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.round(samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return target.getvalue()


def sound(data: bytes) -> NDArray[np.float32]:
    """What `sound_bytes` wrote."""
    with wave.open(io.BytesIO(data)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(32767)


def members(
    target: bytes, reference: bytes, identity: bytes, audio: NDArray[np.float32], kind: str, about: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of a sample, by their WebDataset extensions, without tensors (`tensor_bytes`)."""
    return {
        f"target.{kind}": target,
        f"reference.{kind}": reference,
        "identity.png": identity,
        "sound.wav": sound_bytes(audio),
        "json": (json.dumps(about, sort_keys=True) + "\n").encode(),
    }


def tensor_bytes(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Tensors as a safetensors file."""
    return save({name: np.ascontiguousarray(x) for name, x in tensors.items()})


def decode(files: Mapping[str, bytes]) -> Sample:
    """A sample from its files."""
    kind = "npy" if "target.npy" in files else "mp4"
    return Sample(
        video_frames(files[f"target.{kind}"], kind),
        video_frames(files[f"reference.{kind}"], kind),
        picture(files["identity.png"]),
        sound(files["sound.wav"]),
        json.loads(files["json"]),
        load(files["safetensors"]) if "safetensors" in files else {},
    )
