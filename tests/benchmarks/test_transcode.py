"""What the whole job is compared with: clips of the sizes asked for, and a transcode that only copies pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from lipstream import LipSyncEngine, samples
from lipstream.media import read_audio

from benchmarks import clips, transcode


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_clip_has_the_size_asked_for_and_shows_a_face(speech: Path, tmp_path: Path) -> None:
    clips.make_clip(tmp_path / "clip.mp4", 640, 360, 30)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate, stream.frames) == (640, 360, 25, 30)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    dubbed = LipSyncEngine.load("tiny").dub(tmp_path / "clip.mp4", speech, tmp_path / "dubbed.mp4")
    assert (dubbed.bypassed, dubbed.width, dubbed.height) == (0, 640, 360)


def test_a_clip_longer_than_the_sample_turns_back() -> None:
    with av.open(str(samples.FACE)) as container:
        count = sum(1 for _ in container.decode(video=0))
    frames = [frame.astype(np.float32) for frame in clips.pictures(96, 64, count + 2)]
    assert np.abs(frames[count] - frames[count - 2]).mean() < 2 * clips.GRAIN


def test_the_grain_is_seeded_and_differs_between_frames() -> None:
    first, again = (list(clips.pictures(96, 64, 2)) for _ in range(2))
    other = list(clips.pictures(96, 64, 2, seed=1))
    assert np.array_equal(first, again)
    difference = first[0].astype(np.float32) - other[0]
    assert difference.std() == pytest.approx(2**0.5 * clips.GRAIN, rel=0.1)


def test_a_transcode_has_the_frames_the_size_and_the_pictures_of_the_source(tmp_path: Path) -> None:
    """Two frames more than the video has: they are its first."""
    source = decoded(samples.FACE)
    transcode.transcode(samples.FACE, samples.SPEECH, tmp_path / "out.mp4", len(source) + 2, "ultrafast", 10)
    found, (speech, rate) = decoded(tmp_path / "out.mp4"), read_audio(samples.SPEECH)
    assert len(found) == len(source) + 2
    for frame, wanted in zip(found, [*source, *source[:2]], strict=True):
        assert frame.shape == wanted.shape
        assert np.abs(frame.astype(np.float32) - wanted).mean() < 3
    with av.open(str(tmp_path / "out.mp4")) as container:
        (sound,) = container.streams.audio
        assert (sound.codec_context.name, sound.rate) == ("aac", 16000)
        assert float(sound.duration * sound.time_base) == pytest.approx(len(speech) / rate, abs=0.1)


def test_an_error_of_the_decoding_thread_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(video: Path) -> Iterator[av.VideoFrame]:
        with av.open(str(video)) as container:
            yield next(container.decode(video=0))
        raise ValueError("the file ends here")

    monkeypatch.setattr(transcode, "_decoded", broken)
    with pytest.raises(ValueError, match="ends here"):
        transcode.transcode(samples.FACE, samples.SPEECH, tmp_path / "out.mp4", 5, "ultrafast", 10)
