"""Kind `pipeline` of `golden`: a whole run of the upstream system, from frames and waveform to pasted frames.

It goes through `LipSyncEngine.dub` with the upstream options. InsightFace, whose models are not free, is replaced by a
double that finds the recorded landmarks; frames and sound are written as files without loss.
"""

from __future__ import annotations

import sys
import tempfile
import types
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import cv2
import numpy as np
import torch
from lipstream import LipSyncEngine
from lipstream.backends import ChunkStream
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.backends.sampler import predict_x0
from lipstream.backends.stepped import SteppedStream
from lipstream.backends.steps import Steps
from lipstream.face import FaceOptions
from lipstream.media import VideoReader, VideoWriter
from lipstream_export.bundle import export_bundle
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import CausalDiT, StudentConfig, WanVAE, WanVAEConfig
from lipstream_models.parts import StudentParts
from lipstream_models.released.masks import load_masks
from lipstream_models.released.wav2vec import LiveWav2Vec, wav2vec
from numpy.typing import NDArray

Array = NDArray[np.float32]
CROPS, CROPS_MEAN, FRAMES = 2, 0.1, 1
"""Levels of 255: largest and mean difference of crops, and largest of frames."""
EXACT, TOLERANCE = 1e-5, 2e-3
"""Relative errors of what no crop goes into, and of the rest. The original's crops are stored in part only, so ours go
in: one of 10,000 samples is rounded to another level."""


class Recorded:
    """Steps of a stream that also keep what goes through them."""

    def __init__(self, steps: Steps, t_list: tuple[float, ...]) -> None:
        self._steps, self._t_list = steps, t_list
        self.crops: list[Array] = []
        self.latents: list[Array] = []
        self.first: list[Array] = []
        self.last: list[Array] = []
        self.audio: list[Array] = []
        self.decoded: list[Array] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)

    def encode_video(self, frames: Array) -> Array:
        self.crops.append(frames.copy())
        self.latents.append(self._steps.encode_video(frames))
        return self.latents[-1].copy()

    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        velocity = self._steps.denoise(latent, condition, audio, step)
        if step == 0:
            self.first.append(predict_x0(latent, velocity, self._t_list[0]))
            self.audio.append(audio.copy())
        return velocity

    def decode(self, latent: Array) -> Array:
        self.last.append(latent.copy())
        self.decoded.append(self._steps.decode(latent))
        return self.decoded[-1].copy()


class RecordingBackend:
    """A backend that runs chunk after chunk and records them."""

    reuses_streams = False

    def __init__(self, backend: TorchBackend | OnnxRuntimeBackend, parts: StudentParts) -> None:
        self._backend, self._config = backend, parts.config
        self._mask = parts.masks["latent"].numpy()
        self.encode_clip = backend.encode_clip
        self.steps: list[Recorded] = []

    def open_stream(self) -> ChunkStream:
        self.steps.append(Recorded(self._backend.open_steps(), self._config.t_list))
        steps = cast(Steps, self.steps[-1])
        return SteppedStream(steps, self._config.t_list, self._config.sequence, self._mask)


def parts_of(golden: Any, folder: Path) -> StudentParts:
    """The student, codec and audio encoder of a golden file."""
    c = golden.config
    sizes = c["student"] | {"t_list": tuple(c["student"]["t_list"])}
    under: dict[str, dict[str, torch.Tensor]] = {}
    for name, x in golden.weights.items():
        part, _, key = name.partition("/")
        under.setdefault(part, {})[key] = x
    hidden = under["student"]["audio_proj.proj.weight"].shape[0]
    config = StudentConfig(**sizes, audio_hidden=hidden)
    student = CausalDiT(config).eval()
    student.load_state_dict(under["student"])
    vae = WanVAE(WanVAEConfig.of(under["vae"])).eval()
    vae.load_state_dict(under["vae"])
    text = torch.zeros(config.text_len, config.text_dim)
    rows = torch.from_numpy(golden.inputs["text"])
    text[: len(rows)] = rows
    cv2.imwrite(str(folder / "mask.png"), golden.inputs["mask"].astype(np.uint8))
    speech = LiveWav2Vec(wav2vec(c["wav2vec"], under["wav2vec"]), lookback=3.2, lookahead=0.08)
    masks = load_masks(folder / "mask.png", config)
    return StudentParts(
        config, student, text, wan=vae, speech=speech, masks=masks, encoder="wan", decoder="wan", model={"name": "14b"}
    )


def pictures_of(golden: Any) -> list[NDArray[np.uint8]]:
    """The stored PNG files, RGB."""
    data = golden.inputs["video_png"].astype(np.uint8)
    ends = np.cumsum(golden.inputs["video_png_bytes"].astype(np.int64))
    files = np.split(data, ends[:-1])
    return [np.ascontiguousarray(cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1]) for file in files]


@contextmanager
def insightface_finds(pictures: list[NDArray[np.uint8]], golden: Any) -> Iterator[None]:
    """The package InsightFace, replaced by one that finds the recorded faces in these pictures."""
    known = {picture.tobytes(): i for i, picture in enumerate(pictures)}

    class FaceAnalysis:
        def __init__(self, root: str, **_: Any) -> None:
            self.models = {"detection": None, "landmark_2d_106": None}

        def prepare(self, **_: Any) -> None:
            """Nothing to load."""

        def get(self, image: NDArray[np.uint8]) -> list[Any]:
            i = known[np.ascontiguousarray(image).tobytes()]
            box, landmarks = golden.inputs["bbox"][i], golden.inputs["landmarks"][i]
            return [SimpleNamespace(bbox=box, landmark_2d_106=landmarks, det_score=0.9)]

    package, app = types.ModuleType("insightface"), types.ModuleType("insightface.app")
    app.FaceAnalysis = FaceAnalysis  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"insightface": package, "insightface.app": app}):
        yield


def pipeline(golden: Any, backend: str) -> float:
    """The worst relative error of all stages.

    Raises AssertionError where crops or frames are further off than they may be.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = parts_of(golden, folder)
        bundle = export_bundle(parts, folder / "bundle")
        runs: TorchBackend | OnnxRuntimeBackend = (
            TorchBackend(parts) if backend == "torch" else OnnxRuntimeBackend(bundle)
        )
        recording = RecordingBackend(runs, parts)
        engine = LipSyncEngine(bundle, recording)
        pictures = pictures_of(golden)
        height, width = pictures[0].shape[:2]
        sound = golden.inputs["waveform_int16"].astype(np.int16).reshape(-1)
        with VideoWriter(folder / "video.mkv", width, height, lossless=True) as writer:
            for picture in pictures:
                writer.write(picture)
        write_wave(folder / "sound.wav", sound)
        face = FaceOptions(insightface=folder, upstream=True)
        with insightface_finds(pictures, golden):
            engine.dub(
                folder / "video.mkv",
                folder / "sound.wav",
                folder / "out.mkv",
                face=face,
                seed=golden.config["seed"],
                noise="torch",
                lossless=True,
            )
            tracker = face.tracker()
            shown = [pictures[int(i)] for i in golden.inputs["shown"]]
            matrices = [observed.matrix for picture in shown if (observed := tracker.track(picture))]
        return compare(golden, recording.steps[-1], np.stack(matrices), list(VideoReader(folder / "out.mkv")))


def compare(golden: Any, run: Recorded, matrices: Array, frames: list[NDArray[np.uint8]]) -> float:
    """See `pipeline`."""
    video, latent = golden.config["video_frames"], golden.config["latent_frames"]
    first = run.crops[0].shape[0] - 9  # frames in front of the first chunk's

    def clip(of_chunks: list[Array]) -> Array:
        return np.concatenate(of_chunks)[first : first + video]

    def chunks(of_chunks: list[Array]) -> Array:
        return np.concatenate(of_chunks, axis=1)[:, :latent]

    plain, masked = (chunks([pair[i] for pair in run.latents]) for i in (0, 1))
    exact = {
        "audio": golden.error("audio", clip(run.audio)),
        "matrix": golden.error("matrix", np.asarray(matrices, np.float16).astype(np.float64)),
    }
    after_crops = {
        "sequence_s4": golden.error("sequence_s4", plain[:, :, ::4, ::4]),
        "masked_s4": golden.error("masked_s4", masked[:, :, ::4, ::4]),
        "x0_first_s4": golden.error("x0_first_s4", chunks(run.first)[:, :, ::4, ::4]),
        "x0_s2": golden.error("x0_s2", chunks(run.last)[:, :, ::2, ::2]),
        "decoded_s16": golden.error("decoded_s16", clip(run.decoded)[:, :, ::16, ::16]),
    }
    crops = np.abs(np.rint(clip(run.crops)[:, :, ::16, ::16] * 255) - golden.outputs.pop("crops_s16").numpy())
    if len(frames) != video:
        raise AssertionError(f"{len(frames)} frames, not {video}")
    wanted = golden.outputs.pop("frames_s8").numpy().astype(int)
    pasted = np.abs(np.stack([frame[::8, ::8] for frame in frames]) - wanted)
    errors = exact | after_crops
    report = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    report += f"; crops {crops.max():.0f} levels, mean {crops.mean():.4f}; frames {pasted.max()} levels"
    print(report, file=sys.stderr)
    if max(exact.values()) > EXACT or crops.max() > CROPS or crops.mean() > CROPS_MEAN or pasted.max() > FRAMES:
        raise AssertionError(report)
    return max(after_crops.values())


def write_wave(path: Path, samples: NDArray[np.int16]) -> None:
    """16 kHz, mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
