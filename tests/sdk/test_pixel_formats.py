"""A dub changes the mouth, and no other sample of any plane, in every pixel format."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from lipstream import LipSyncEngine, samples
from lipstream.face import FaceTracker
from lipstream.media import Colour, Picture, PictureFormat, VideoReader, VideoWriter
from lipstream.media.hdr import Hdr

FRAMES = 12
HDR10 = Colour(9, 9, 16)


@pytest.fixture(scope="module")
def engine() -> LipSyncEngine:
    return LipSyncEngine.load("tiny", threads=1)


@pytest.fixture(scope="module")
def speaker() -> list[Picture]:
    return list(islice(VideoReader(samples.FACE).pictures(), FRAMES))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much speech as `speaker` has frames."""
    from lipstream.media import read_audio

    sound, rate = read_audio(samples.SPEECH)
    path = tmp_path_factory.mktemp("sound") / "speech.mkv"
    with VideoWriter(path, 16, 16, audio_rate=rate, audio_channels=sound.shape[1], lossless=True) as writer:
        for i in range(FRAMES):
            writer.write(np.zeros((16, 16, 3), np.uint8))
            writer.write_audio(sound[i * rate // 25 : (i + 1) * rate // 25])
    return path


def clip(path: Path, pictures: list[Picture], **options: object) -> Path:
    format = pictures[0].format
    with VideoWriter(path, format.width, format.height, format=format, **options) as writer:  # type: ignore[arg-type]
        for picture in pictures:
            writer.write(picture)
    return path


def check(source: Path, result: Path) -> None:
    """The samples that differ lie in the face, and are there."""
    tracker, changed = FaceTracker("raise"), 0
    for before, after in zip(VideoReader(source).pictures(), VideoReader(result).pictures(), strict=True):
        assert after.format.name == before.format.name
        assert after.format.colour == before.format.colour
        face = tracker.track(before)
        assert face is not None
        low, high = face.landmarks[:, :2].min(axis=0), face.landmarks[:, :2].max(axis=0)
        middle = (low[1] + high[1]) / 2 - 0.1 * (high[1] - low[1])
        for index, (one, other) in enumerate(zip(before.planes, after.planes, strict=True)):
            rows, columns = np.nonzero(one != other)
            if before.format.has_alpha and index == len(before.planes) - 1:
                assert not rows.size
            if not rows.size:
                continue
            (step_x, step_y), margin = before.format.planes[index].step, 4
            assert columns.min() * step_x >= low[0] - margin
            assert columns.max() * step_x <= high[0] + margin
            assert rows.min() * step_y >= middle
            assert rows.max() * step_y <= high[1] + 0.25 * (high[1] - low[1])
            changed += rows.size
    assert changed > 100 * FRAMES


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("yuv420p", Colour()),
        ("yuv420p", Colour(6, 6, 6, full_range=True)),
        ("yuv422p", Colour(6, 6, 6)),
        ("yuv444p", Colour()),
        ("yuv411p", Colour(6, 6, 6)),
        ("yuv420p10le", HDR10),
        ("yuv422p10le", Colour(1, full_range=True)),
        ("yuv444p12le", HDR10),
        ("yuva444p10le", Colour()),
        ("gbrp10le", Colour()),
        ("gray", Colour(6, 6, 6, full_range=True)),
    ],
)
def test_samples_outside_the_mouth_are_the_sources(
    engine: LipSyncEngine, speaker: list[Picture], speech: Path, tmp_path: Path, name: str, colour: Colour
) -> None:
    size = speaker[0].width, speaker[0].height
    pictures = [picture.converted(PictureFormat(name, *size, colour)) for picture in speaker]
    source = clip(tmp_path / "source.mkv", pictures, lossless=True)
    assert VideoReader(source).info.format.name == name
    engine.dub(source, speech, tmp_path / "result.mkv", lossless=True)
    check(source, tmp_path / "result.mkv")


def test_a_prores_4444_clip_keeps_its_alpha(
    engine: LipSyncEngine, speaker: list[Picture], speech: Path, tmp_path: Path
) -> None:
    size = speaker[0].width, speaker[0].height
    cut_out = []
    for picture in speaker:
        rgba = picture.converted(PictureFormat("yuva444p10le", *size))
        frame = rgba.to_frame()
        alpha = np.frombuffer(memoryview(frame.planes[3]), np.uint16)
        alpha[: alpha.size // 8] = 0  # the top is transparent
        cut_out.append(Picture(frame, rgba.format))
    source = clip(tmp_path / "source.mov", cut_out, codec="prores")
    result = engine.dub(source, speech, tmp_path / "result.mov")
    assert result.warnings == ("12 bits a sample become 10",)  # FFmpeg decodes every ProRes 4444 file to 12 bits
    for before, after in zip(
        VideoReader(source).pictures(), VideoReader(tmp_path / "result.mov").pictures(), strict=True
    ):
        assert before.is_transparent
        np.testing.assert_allclose(after.planes[3], before.planes[3], atol=2 ** (before.format.depth - 8))
    warned = engine.dub(source, speech, tmp_path / "result.mp4")
    assert any("alpha" in warning for warning in warned.warnings)


def test_hdr10_stays_hdr10(engine: LipSyncEngine, speaker: list[Picture], speech: Path, tmp_path: Path) -> None:
    size = speaker[0].width, speaker[0].height
    hdr = Hdr(light=(800, 200))
    pictures = [picture.converted(PictureFormat("yuv420p10le", *size, HDR10)) for picture in speaker]
    source = clip(tmp_path / "source.mp4", pictures, hdr=hdr, preset="ultrafast")
    result = engine.dub(source, speech, tmp_path / "result.mp4", preset="ultrafast")
    info = VideoReader(tmp_path / "result.mp4").info
    assert result.warnings == ()
    assert info.format.name == "yuv420p10le"
    assert info.colour == HDR10
    assert info.hdr == hdr
    forced = engine.dub(source, speech, tmp_path / "eight.mp4", codec="h264")
    assert any("10 bits a sample become 8" in warning for warning in forced.warnings)
