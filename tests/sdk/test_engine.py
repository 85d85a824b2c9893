"""The engine with the shipped bundle: streaming equals offline, sessions are independent, references are looped."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lipstream import FaceOptions, LipSyncEngine, PreparedReference
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.bundle import Bundle
from lipstream.errors import BackendError, ConfigError, FaceNotFoundError, MediaOpenError, SessionClosedError
from lipstream.face import LipStreamFacePipeline
from lipstream.media import VideoWriter, ping_pong
from lipstream.session import Frame
from lipstream.session.reference import LiveReference, stack_crops
from numpy.typing import NDArray
from numpy_stream import assert_same_frames, speak
from voice_and_video import voice

Video = NDArray[np.uint8]


def pcm(seconds: float, rate: int, kind: str = "float32", channels: int = 1, seed: int = 0) -> NDArray[Any]:
    samples = voice(seconds, rate, seed)
    if channels > 1:
        samples = np.stack([np.roll(samples, 7 * c) for c in range(channels)], axis=1)
    return (samples * 32767).astype(np.int16) if kind == "int16" else samples


@pytest.mark.parametrize(
    ("rate", "kind", "channels"),
    [(8000, "int16", 1), (16_000, "float32", 1), (22_050, "int16", 2), (44_100, "float32", 2), (48_000, "int16", 1)],
)
def test_streaming_equals_offline(
    engine: LipSyncEngine, prepared: PreparedReference, rate: int, kind: str, channels: int
) -> None:
    samples = pcm(0.95, rate, kind, channels)
    rng = np.random.default_rng(rate)
    cuts = tuple(sorted(rng.integers(0, len(samples), 40).tolist()))
    with engine.session(prepared) as whole, engine.session(prepared) as split:
        expected = speak(whole, samples, rate)
        assert_same_frames(speak(split, samples, rate, cuts), expected)
    assert len(expected) == 24
    assert expected[-1].end_of_segment
    sound = np.concatenate([frame.audio for frame in expected])
    scale = 32768 if kind == "int16" else 1
    np.testing.assert_array_equal(sound[: len(samples)] * scale, samples.reshape(len(samples), -1))
    assert not sound[len(samples) :].any()


def test_streaming_equals_offline_on_a_live_reference(engine: LipSyncEngine, speaker: Video) -> None:
    samples = pcm(0.9, 24_000)
    with engine.session(speaker) as whole, engine.session(list(speaker)) as split:
        assert_same_frames(speak(split, samples, 24_000, (1, 5000, 5001, 20_000)), speak(whole, samples, 24_000))


def test_all_cores_give_the_same_bits_every_time(prepared: PreparedReference) -> None:
    engine, samples = LipSyncEngine.load("tiny"), pcm(0.9, 16_000)
    with engine.session(prepared) as one, engine.session(prepared) as other:
        assert_same_frames(speak(other, samples, cuts=(5000, 9000)), speak(one, samples))


def test_two_sessions_in_turn_and_two_in_threads(engine: LipSyncEngine, prepared: PreparedReference) -> None:
    voices = [pcm(0.9, 16_000, seed=k) for k in range(2)]

    def alone(k: int) -> list[Frame]:
        with engine.session(prepared, seed=k) as session:
            return speak(session, voices[k])

    expected = [alone(0), alone(1)]
    with ThreadPoolExecutor(2) as pool:
        for found, frames in zip(pool.map(alone, range(2)), expected, strict=True):
            assert_same_frames(found, frames)
    sessions = [engine.session(prepared, seed=k) for k in range(2)]
    found_in_turn: list[list[Frame]] = [[], []]
    for start in range(0, 14_400, 1800):
        for k, session in enumerate(sessions):
            session.push_audio(voices[k][start : start + 1800], 16_000)
            found_in_turn[k] += list(session)
    for k, session in enumerate(sessions):
        session.flush()
        assert_same_frames(found_in_turn[k] + list(session), expected[k])


def test_seed_and_voice_change_the_picture(engine: LipSyncEngine, prepared: PreparedReference) -> None:
    def images(seed: int, samples: NDArray[np.float32]) -> Video:
        with engine.session(prepared, seed=seed) as session:
            return np.stack([frame.image for frame in speak(session, samples)])

    one = images(1, pcm(0.9, 16_000))
    np.testing.assert_array_equal(images(1, pcm(0.9, 16_000)), one)
    assert (images(2, pcm(0.9, 16_000)) != one).any()
    assert (images(1, np.zeros(14_400, np.float32)) != one).any()


def test_the_mouth_region_changes_and_nothing_else(
    engine: LipSyncEngine, prepared: PreparedReference, speaker: Video
) -> None:
    with engine.session(prepared) as session:
        frames = speak(session, pcm(2.6, 16_000))
    assert len(frames) == 65
    for frame in frames:
        source = speaker[ping_pong(frame.index, 31)]
        changed = (frame.image != source).any(axis=2)
        assert not frame.bypassed
        assert 0.005 < changed.mean() < 0.25
        rows, _ = np.nonzero(changed)
        assert rows.min() > 0.35 * 160  # nothing above the eyes


class TestPrepared:
    def test_equals_a_live_reference(self, engine: LipSyncEngine, prepared: PreparedReference, speaker: Video) -> None:
        assert prepared.frames == 31
        samples = pcm(3.3, 16_000)
        with engine.session(prepared) as a, engine.session(speaker) as b:
            assert_same_frames(speak(a, samples), speak(b, samples))

    @pytest.mark.parametrize("count", [1, 7, 17])
    def test_latents_of_all_laps_equal_an_endless_stream(
        self, engine: LipSyncEngine, speaker: Video, count: int
    ) -> None:
        reference = engine.prepare(speaker[:count])
        geometry, face = engine.manifest.geometry, FaceOptions()
        pipeline = LipStreamFacePipeline(geometry, np.ones(geometry.crop_size, np.float32))
        live = LiveReference(speaker[: reference.frames], geometry, face, pipeline)
        stream, first = engine.backend.open_stream(), 0
        for chunk in range(9):
            frames = live.frames(first, 12 if chunk else 9)
            expected = stream.encode_video(stack_crops(geometry, [frame.crop for frame in frames]))
            np.testing.assert_array_equal(reference.latents(first), expected)
            first += len(frames)

    def test_an_unaligned_chunk_is_encoded_again(self, engine: LipSyncEngine, speaker: Video) -> None:
        """After a flush within a chunk the picture continues at its position, as with a live reference."""
        prepared = engine.prepare(speaker)
        assert prepared.latents(5) is None
        with engine.session(prepared) as a, engine.session(speaker) as b:
            for seconds in (0.52, 0.7):
                assert_same_frames(speak(a, pcm(seconds, 16_000)), speak(b, pcm(seconds, 16_000)))

    def test_begins_with_the_first_face(self, engine: LipSyncEngine, speaker: Video) -> None:
        black = np.zeros((7, *speaker.shape[1:]), np.uint8)
        prepared = engine.prepare(np.concatenate([black, speaker]))
        assert prepared.skipped == 7
        np.testing.assert_array_equal(prepared.at(0).picture.rgb, speaker[0])

    def test_keeps_the_limit_of_disk_space(self, engine: LipSyncEngine, speaker: Video) -> None:
        assert engine.prepare(speaker, loop_bytes=14 * speaker[0].nbytes).frames == 13

    def test_a_session_cannot_change_the_face_options(self, engine: LipSyncEngine, prepared: PreparedReference) -> None:
        engine.session(prepared, face=FaceOptions("hold")).close()
        with pytest.raises(ConfigError, match="prepare"):
            engine.session(prepared, face=FaceOptions("raise"))
        with pytest.raises(ConfigError, match="prepare"):
            engine.session(prepared, face=FaceOptions(at=(10.0, 10.0)))

    def test_frames_are_played_forwards_and_backwards(self, prepared: PreparedReference, speaker: Video) -> None:
        shown = [frame.picture.rgb for frame in prepared.play().frames(0, 69)]
        for i, image in enumerate(shown):
            np.testing.assert_array_equal(image, speaker[30 - abs(i % 60 - 30)])

    def test_a_lap_is_whole_chunks(self, engine: LipSyncEngine, speaker: Video) -> None:
        for count, kept in ((6, 6), (12, 7), (18, 13)):
            assert engine.prepare(speaker[:count]).frames == kept
        assert engine.prepare(speaker, seconds=0.5).frames == 7

    def test_is_shared_by_threads(self, engine: LipSyncEngine, prepared: PreparedReference) -> None:
        barrier = threading.Barrier(3)

        def one(_: int) -> list[Frame]:
            with engine.session(prepared) as session:
                barrier.wait(30)
                return speak(session, pcm(0.5, 16_000))

        with ThreadPoolExecutor(3) as pool:
            first, *others = pool.map(one, range(3))
        for other in others:
            assert_same_frames(other, first)

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
    def test_an_invalid_length(self, engine: LipSyncEngine, speaker: Video, seconds: float) -> None:
        with pytest.raises(ConfigError, match="seconds"):
            engine.prepare(speaker, seconds=seconds)

    def test_another_bundle_is_rejected(
        self, engine: LipSyncEngine, prepared: PreparedReference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = LipSyncEngine.__new__(LipSyncEngine)
        other.__dict__ |= engine.__dict__ | {"manifest": None}
        with pytest.raises(ConfigError, match="another bundle"):
            other.session(prepared)


class TestFaces:
    def hidden(self, speaker: Video) -> Video:
        """A video without the speaker in frames 12 to 23."""
        frames = speaker.copy()
        frames[12:24] = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (160, 192, 3), np.uint8), (0, 0), 9)
        return frames

    def test_bypassed_frames_are_the_sources(self, engine: LipSyncEngine, speaker: Video) -> None:
        video = self.hidden(speaker)
        with engine.session(video, face=FaceOptions("bypass")) as session:
            frames = speak(session, pcm(31 / 25, 16_000))
        assert [frame.index for frame in frames if frame.bypassed] == list(range(12, 24))
        for frame in frames:
            assert (frame.image == video[frame.index]).all() == frame.bypassed
            assert not np.shares_memory(frame.image, video)

    def test_raise_ends_the_session(self, engine: LipSyncEngine, speaker: Video) -> None:
        with engine.session(self.hidden(speaker), face=FaceOptions("raise")) as session:
            session.push_audio(pcm(31 / 25, 16_000), 16_000)
            taken: list[Frame] = []
            with pytest.raises(FaceNotFoundError) as caught:
                taken.extend(session)
            assert caught.value.frame == 12
            assert [frame.index for frame in taken] == list(range(9))
            with pytest.raises(SessionClosedError, match="FaceNotFoundError"):
                session.push_audio(pcm(1, 16_000), 16_000)
            with pytest.raises(SessionClosedError, match="FaceNotFoundError"):
                list(session)

    def test_no_face_at_all(self, engine: LipSyncEngine) -> None:
        for open_ in (engine.session, engine.prepare):
            with pytest.raises(FaceNotFoundError, match="12 frames"):
                open_(np.full((12, 120, 160, 3), 90, np.uint8))

    def test_an_invalid_policy_and_point(self, engine: LipSyncEngine, speaker: Video) -> None:
        with pytest.raises(ConfigError, match="policy"):
            engine.session(speaker, face=FaceOptions("guess"))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="selection"):
            engine.session(speaker, face=FaceOptions(at=(float("nan"), 3)))


class TestSources:
    def test_a_picture_a_path_and_frames_are_the_same(
        self, engine: LipSyncEngine, speaker: Video, tmp_path: Path
    ) -> None:
        picture = tmp_path / "face.png"
        cv2.imwrite(str(picture), speaker[0][..., ::-1])
        clip = tmp_path / "face.mkv"
        with VideoWriter(clip, 192, 160, lossless=True) as writer:
            writer.write(speaker[0])
        samples = pcm(0.6, 16_000)
        found = []
        for source in (picture, str(picture), clip, speaker[:1], [speaker[0]], (speaker[0],)):
            with engine.session(source) as session:
                found.append(speak(session, samples))
        for frames in found[1:]:
            assert_same_frames(frames, found[0])

    @pytest.mark.parametrize(
        "source",
        [
            [],
            np.zeros((0, 160, 192, 3), np.uint8),
            np.zeros((160, 192, 3), np.uint8),
            np.zeros((4, 160, 192, 3), np.float32),
            np.zeros((4, 160, 192), np.uint8),
            np.array(5),
            [1, 2, 3],
            b"face.mp4",
            None,
            5,
            iter([]),
        ],
        ids=lambda source: type(source).__name__,
    )
    def test_an_invalid_reference(self, engine: LipSyncEngine, source: Any) -> None:
        for open_ in (engine.session, engine.prepare):
            with pytest.raises(ConfigError):
                open_(source)

    def test_frames_that_change_size_end_the_session(self, engine: LipSyncEngine, speaker: Video) -> None:
        frames = [*speaker[:3], speaker[3][:100]]
        with engine.session(frames) as session, pytest.raises(ConfigError, match="frame 3"):
            speak(session, pcm(0.6, 16_000))
        with pytest.raises(ConfigError, match="frame 3"):
            engine.prepare(frames)

    def test_a_missing_file(self, engine: LipSyncEngine, tmp_path: Path) -> None:
        with pytest.raises(MediaOpenError):
            engine.session(tmp_path / "none.mp4")


def test_invalid_arguments_of_load(tiny: Path) -> None:
    with pytest.raises(BackendError, match="no backend is named 'abacus'"):
        LipSyncEngine.load(tiny, backend="abacus")
    with pytest.raises(ConfigError, match="threads"):
        LipSyncEngine.load(tiny, threads=-1)


def test_streams_of_a_backend_are_independent(engine: LipSyncEngine) -> None:
    """Every stateful call, run with and without another stream in between."""
    g, rng = engine.manifest.geometry, np.random.default_rng(0)
    c, height, width = g.latent_channels, *g.latent_size

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    inputs = [
        (
            rng.random((g.video_frames, 3, *g.crop_size), np.float32),
            normal(c, g.chunk_frames, height, width),
            normal(3 * c + 1, g.chunk_frames, height, width),
            normal(g.video_frames, engine.manifest.audio.features),
        )
        for _ in range(4)
    ]

    def step(stream: Any, chunk: int) -> list[NDArray[np.float32]]:
        video, latent, condition, audio = inputs[chunk]
        stream.begin_chunk(chunk)
        out = [stream.encode_video(video), stream.denoise(latent, condition, audio, 0)]
        stream.context(latent, condition, audio)
        return [*out, stream.decode(latent)]

    backend = OnnxRuntimeBackend(Bundle.load("tiny"), threads=1)
    alone = backend.open_steps()
    expected = [step(alone, k) for k in range(4)]
    stream, other = backend.open_steps(), backend.open_steps()
    for k in range(4):
        found = step(stream, k)
        for a, b in zip(found, expected[k], strict=True):
            np.testing.assert_array_equal(a, b)
        step(other, 0)
    fresh = backend.open_steps()
    assert all((a == b).all() for a, b in zip(step(fresh, 0), expected[0], strict=True))
    assert any((a != b).any() for a, b in zip(step(backend.open_steps(), 0)[:1], expected[1][:1], strict=True))


def test_a_session_outlives_its_engine(prepared: PreparedReference) -> None:
    async def main() -> int:
        session = LipSyncEngine.load("tiny").session(prepared)
        gc.collect()
        with session:
            session.push_audio(pcm(0.4, 16_000), 16_000)
            session.flush()
            return len([frame async for frame in session])

    assert asyncio.run(main()) == 10


def test_a_backend_that_keeps_nothing_of_a_session_is_warmed_once(
    engine: LipSyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_stream = OnnxRuntimeBackend.open_stream
    monkeypatch.setattr(OnnxRuntimeBackend, "open_stream", lambda self: opened.append(self) or open_stream(self))
    assert engine.warmup(1, sessions=64) > 0
    assert len(opened) == 1
