"""Twelve videos as in a real collection: most are unusable as training data, each for a different reason."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from lipstream.media import VideoWriter
from lipstream_training.data.clips import draw_video
from lipstream_training.data.speech import SAMPLE_RATE, speech
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
LATE = 6
"""Frames by which the mouth of `out_of_sync.mp4` is late."""
DROPPED = {
    "no_face.mp4": "no face",
    "two_faces.mp4": "more than one face",
    "no_audio.mp4": "no audio",
    "truncated.mp4": "truncated: the file ends before its sound does",
    "out_of_sync.mp4": f"out of sync: the mouth is {LATE} frames late",
    "silent.mp4": "silent",
}
"""Why no clip of a video may be kept."""
KEPT = ("variable_rate.mp4", "five_seconds.mp4", "uhd.mp4", "portrait.mp4", "ten_bit.mkv", "ünïcode 名前 🎬.mp4")


def make_odd_videos(folder: Path) -> None:
    """Write the twelve into `folder`."""
    folder.mkdir(parents=True)
    frames, sound = _speaker(0, 7.0)
    other, _ = _speaker(1, 7.0)
    _write(folder / "ünïcode 名前 🎬.mp4", frames, sound)
    _write(folder / "five_seconds.mp4", frames[:125], sound[: 125 * 640])
    _write(folder / "silent.mp4", frames, np.zeros_like(sound))
    _write(folder / "no_audio.mp4", frames, None)
    _write(folder / "two_faces.mp4", np.concatenate([frames, other], axis=2), sound)
    _write(folder / "no_face.mp4", np.stack([np.roll(_landscape(), i, axis=1) for i in range(len(frames))]), sound)
    _write(folder / "out_of_sync.mp4", frames[:-LATE], sound[LATE * 640 :])
    _write(folder / "portrait.mp4", *_speaker(2, 7.0, (426, 240)))
    enlarged = [cv2.resize(frame, (2592, 2160), interpolation=cv2.INTER_LINEAR) for frame in frames[:109:2]]
    wide = [cv2.copyMakeBorder(frame, 0, 0, 624, 624, cv2.BORDER_REPLICATE) for frame in enlarged]
    _write(folder / "uhd.mp4", wide, sound[: 109 * 640], rate=Fraction(25, 2))
    whole = folder / "ünïcode 名前 🎬.mp4"
    (folder / "truncated.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    rng = np.random.default_rng(0)
    times = np.sort(rng.choice(len(frames) - 1, 140, replace=False) + 1)
    _encode(folder / "variable_rate.mp4", "libx264", "yuv420p", frames, [0, *times], sound)
    _encode(folder / "ten_bit.mkv", "ffv1", "yuv420p10le", frames, range(len(frames)), sound)


def _speaker(number: int, seconds: float, size: tuple[int, int] = (320, 384)) -> tuple[Frames, NDArray[np.float32]]:
    rng = np.random.default_rng([6, number])
    while not (said := speech(seconds, rng).clean)[: 81 * 640].any():
        pass
    return draw_video(rng, said, size)[0], said


def _landscape() -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    return cv2.resize(rng.integers(0, 255, (8, 10, 3)).astype(np.uint8), (384, 320), interpolation=cv2.INTER_CUBIC)


def _write(
    path: Path, frames: Sequence[NDArray[np.uint8]], sound: NDArray[np.float32] | None, rate: Fraction = Fraction(25)
) -> None:
    height, width = frames[0].shape[:2]
    options = {} if sound is None else {"audio_rate": SAMPLE_RATE}
    with VideoWriter(path, width, height, rate=rate, preset="ultrafast", **options) as writer:
        if sound is not None:
            writer.write_audio(sound)
        for frame in frames:
            writer.write(frame)


def _encode(path: Path, codec: str, pixels: str, frames: Frames, at: Sequence[int], sound: NDArray[np.float32]) -> None:
    """Encode the frames `at`, each with its time stamp, without our writer."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, 25)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], pixels
        audio = container.add_stream("aac", SAMPLE_RATE)
        audio.layout = "mono"
        for i in at:
            picture = av.VideoFrame.from_ndarray(frames[i], "rgb24").reformat(format=pixels)
            picture.pts, picture.time_base = int(i), Fraction(1, 25)
            container.mux(video.encode(picture))
        encoded = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
        encoded.sample_rate, encoded.pts, encoded.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(encoded))
        container.mux(audio.encode(None))
        container.mux(video.encode(None))
