"""Dubbing of files: the result is decoded and compared with the inputs."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from lipstream import FaceOptions, LipSyncEngine
from lipstream.bundle import Bundle
from lipstream.errors import AudioTooShortError, ConfigError, FaceNotFoundError
from lipstream.face import FaceTracker
from lipstream.face.alignment import crop_matrix
from lipstream.media import ping_pong
from numpy.typing import NDArray
from voice_and_video import voice, write_video, write_wav

Video = NDArray[np.uint8]


def decoded(path: Path) -> tuple[Video, NDArray[np.float32]]:
    """Frames [n, H, W, 3] and samples [n, channels] of a file, after a check of its time stamps."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
    times = [clock(frame) for frame in frames]
    start = clock(blocks[0])
    video_end = times[-1] + Fraction(1, 25)
    audio_end = start + Fraction(sum(block.samples for block in blocks), blocks[0].sample_rate)
    assert times == [Fraction(i, 25) for i in range(len(times))]
    assert abs(start) <= Fraction(1, 100)
    assert abs(video_end - audio_end) <= Fraction(40, 1000)
    samples = np.concatenate([np.asarray(block.to_ndarray(), np.float32) for block in blocks], axis=1)
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), samples.reshape(-1, 1)


def clock(frame: av.VideoFrame | av.AudioFrame) -> Fraction:
    assert frame.pts is not None
    assert frame.time_base
    return frame.pts * frame.time_base


def stated_lengths(path: Path) -> tuple[float, ...]:
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        return tuple(float((stream.duration or 0) * (stream.time_base or 0)) for stream in (video, audio))


@pytest.mark.parametrize(("seconds", "frames"), [(0.04, 1), (0.1, 3), (0.36, 9), (0.84, 21), (0.841, 22), (1.7, 43)])
def test_lengths(engine: LipSyncEngine, media: Path, tmp_path: Path, seconds: float, frames: int) -> None:
    speech = write_wav(tmp_path / "speech.wav", voice(seconds, 44_100), 44_100)
    result = engine.dub(media / "talk.mp4", speech, tmp_path / "out.mp4", preset="ultrafast")
    pictures, _ = decoded(tmp_path / "out.mp4")
    assert result.frames == len(pictures) == frames
    assert pictures.shape[1:] == (160, 192, 3)
    assert (result.width, result.height, result.bypassed) == (192, 160, 0)
    video, audio = stated_lengths(tmp_path / "out.mp4")
    assert video == pytest.approx(frames / 25, abs=1e-3)
    assert audio == pytest.approx(frames / 25, abs=1e-3)


def outside(image: Video, keep: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Pixels of `image` whose centre the mask keeps or that are outside the crop; computed independently."""
    size = len(keep)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    to_crop = crop_matrix(matrix, size)
    u = to_crop[0, 0] * x + to_crop[0, 1] * y + to_crop[0, 2]
    v = to_crop[1, 0] * x + to_crop[1, 1] * y + to_crop[1, 2]
    reach = max(1, int(np.ceil(np.hypot(*to_crop[:, 0]))))  # where the picture is coarser, a pixel covers several
    padded = np.pad(keep, 2 * reach, constant_values=1)
    i, j = (np.floor(np.clip(w, -reach - 1, size + reach - 1)).astype(int) + 2 * reach for w in (v, u))
    near = range(1 - reach, reach + 1)
    return np.asarray(np.minimum.reduce([padded[i + a, j + b] for a in near for b in near]) == 1)


def test_lossless_keeps_every_pixel_outside_the_mouth_region(
    engine: LipSyncEngine, tiny: Path, media: Path, speaker: Video, tmp_path: Path
) -> None:
    speech = write_wav(tmp_path / "speech.wav", voice(1.5, seed=2))
    engine.dub(media / "exact.mkv", speech, tmp_path / "out.mkv", lossless=True)
    pictures, samples = decoded(tmp_path / "out.mkv")
    assert len(pictures) == 38
    keep = Bundle.load(tiny).constants["mask.composite"]
    tracker = FaceTracker()
    seen = [tracker.track(frame) for frame in speaker]
    for i, picture in enumerate(pictures):
        k = ping_pong(i, 31)
        observation = seen[k]
        assert observation is not None
        kept = outside(picture, keep, observation.matrix)
        assert 0.7 < kept.mean() < 0.99
        np.testing.assert_array_equal(picture[kept], speaker[k][kept])
        assert (picture[~kept] != speaker[k][~kept]).any(axis=1).mean() > 0.3
    with wave.open(str(speech)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
    assert len(pcm) == 37.5 * 640
    np.testing.assert_array_equal(samples[: len(pcm), 0], pcm)
    assert len(samples) == 38 * 640
    assert not samples[len(pcm) :].any()


def test_the_sound_is_that_of_the_audio_file(engine: LipSyncEngine, media: Path, tmp_path: Path) -> None:
    engine.dub(media / "talk.mp4", media / "speech.wav", tmp_path / "out.mp4", preset="ultrafast")
    _, samples = decoded(tmp_path / "out.mp4")
    said = voice(0.62, seed=1)
    dubbed = samples[: len(said), 0]
    assert np.corrcoef(said, dubbed)[0, 1] > 0.95  # in step: AAC's delay was skipped
    assert np.corrcoef(said[-320:], dubbed[-320:])[0, 1] > 0.8  # to the end: half a frame


def test_the_sound_of_the_video_by_default(engine: LipSyncEngine, media: Path, tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    result = engine.dub(
        media / "talk.mp4", None, tmp_path / "out.mp4", preset="ultrafast", progress=lambda *at: shown.append(at)
    )
    pictures, _ = decoded(tmp_path / "out.mp4")
    assert len(pictures) == result.frames == 31
    assert shown == [(i, 31) for i in range(1, 32)]
    assert {*result.stages} == {"reference", "audio", "denoise", "decode", "wait", "composite", "context", "encode"}
    assert 0 < result.first_frame < result.seconds
    assert all(seconds > 0 for seconds in result.stages.values())  # some at the same time, so not their sum
    assert result.fps == pytest.approx(31 / result.seconds)
    assert result.real_time_factor == pytest.approx(result.seconds / (31 / 25))


def test_thirty_frames_a_second_keep_their_speed(
    engine: LipSyncEngine, speaker: Video, media: Path, tmp_path: Path
) -> None:
    source = write_video(tmp_path / "thirty.mkv", speaker, rate=30, lossless=True)
    engine.dub(source, media / "speech.wav", tmp_path / "out.mkv", lossless=True)
    pictures, _ = decoded(tmp_path / "out.mkv")
    assert len(pictures) == 16
    for i, picture in enumerate(pictures):
        current = int(i / 25 * 30 + 1e-9)
        np.testing.assert_array_equal(picture[:40], speaker[current][:40])  # the hair: the mouth is far below


@pytest.mark.parametrize("name", ["one.mkv", "one.png"])
def test_a_single_frame(engine: LipSyncEngine, speaker: Video, media: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if name.endswith("png"):
        cv2.imwrite(str(source), speaker[0][..., ::-1])
    else:
        write_video(source, speaker[:1], lossless=True)
    engine.dub(source, media / "speech.wav", tmp_path / "out.mkv", lossless=True)
    pictures, _ = decoded(tmp_path / "out.mkv")
    assert len(pictures) == 16
    np.testing.assert_array_equal(pictures[:, :40], np.broadcast_to(speaker[0][:40], (16, 40, 192, 3)))
    assert len({picture.tobytes() for picture in pictures}) > 1  # its lips move


def test_4k(engine: LipSyncEngine, speaker: Video, tmp_path: Path) -> None:
    frames = [cv2.resize(frame, (3840, 2160), interpolation=cv2.INTER_CUBIC) for frame in speaker[:3]]
    source = write_video(tmp_path / "4k.mp4", frames)
    speech = write_wav(tmp_path / "speech.wav", voice(3 / 25))
    result = engine.dub(source, speech, tmp_path / "out.mp4", preset="ultrafast")
    pictures, _ = decoded(tmp_path / "out.mp4")
    assert pictures.shape == (3, 2160, 3840, 3)
    assert (result.width, result.height, result.bypassed) == (3840, 2160, 0)


def test_odd_sizes_and_stereo(engine: LipSyncEngine, speaker: Video, tmp_path: Path) -> None:
    source = write_video(tmp_path / "odd.mkv", speaker[:5, :159, :191], lossless=True)
    speech = write_wav(tmp_path / "speech.wav", np.stack([voice(0.2, 22_050)] * 2, axis=1), 22_050)
    engine.dub(source, speech, tmp_path / "out.mp4", preset="ultrafast")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(list(container.decode(video=0))) == 5
        assert container.streams.audio[0].channels == 2
        assert (container.streams.video[0].width, container.streams.video[0].height) == (192, 160)


def test_frames_without_a_face(engine: LipSyncEngine, speaker: Video, media: Path, tmp_path: Path) -> None:
    frames = [*speaker[:6], *np.full((4, 160, 192, 3), 90, np.uint8), *speaker[6:12]]
    source = write_video(tmp_path / "gone.mkv", frames, lossless=True)
    out = tmp_path / "out.mkv"
    result = engine.dub(source, media / "speech.wav", out, lossless=True, face=FaceOptions("bypass"))
    assert (result.frames, result.bypassed) == (16, 4)
    pictures, _ = decoded(out)
    np.testing.assert_array_equal(pictures[6:10], np.stack(frames[6:10]))
    before = out.read_bytes()
    with pytest.raises(FaceNotFoundError):
        engine.dub(source, media / "speech.wav", out, lossless=True, face=FaceOptions("raise"))
    assert out.read_bytes() == before  # the older result is unchanged
    assert {path.name for path in tmp_path.iterdir()} == {"gone.mkv", "out.mkv"}


@pytest.mark.parametrize("missing", [0, 2])
def test_video_and_output_must_be_paths(engine: LipSyncEngine, media: Path, tmp_path: Path, missing: int) -> None:
    paths: list[Any] = [media / "speaker.mp4", media / "speech.wav", tmp_path / "out.mp4"]
    paths[missing] = None
    with pytest.raises(ConfigError, match="NoneType"):
        engine.dub(*paths)


def test_too_short(engine: LipSyncEngine, media: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioTooShortError, match="20 ms"):
        engine.dub(media / "talk.mp4", media / "short.wav", tmp_path / "out.mp4")
    assert not any(tmp_path.iterdir())


def test_an_error_of_the_progress_callback_leaves_no_file(engine: LipSyncEngine, media: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> Any:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.dub(media / "talk.mp4", media / "speech.wav", tmp_path / "out.mp4", progress=stop)
    assert not any(tmp_path.iterdir())
