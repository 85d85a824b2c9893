"""Media files that are damaged, too large, inconsistent, or refer to other files: a typed error, or a warning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lipstream import LipSyncEngine, samples
from lipstream.cli import main
from lipstream.errors import LipStreamError, MediaOpenError, QualityError
from lipstream.media import AudioReader, VideoReader, VideoWriter, read_audio
from numpy.typing import NDArray
from voice_and_video import voice, write_video, write_wav


@pytest.fixture(scope="module")
def engine() -> LipSyncEngine:
    return LipSyncEngine.load("tiny", threads=1)


@pytest.fixture(scope="module")
def person() -> NDArray[np.uint8]:
    """25 frames of the sample."""
    reader = iter(VideoReader(samples.FACE))
    return np.stack([next(reader) for _ in range(25)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("list.txt", "ffconcat version 1.0\nfile '{secret}'\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile '{secret}'\n"),
        (
            "list.mpd",
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            '<Representation id="1"><BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        ),
        ("picture.svg", '<svg xmlns="http://www.w3.org/2000/svg"><image href="{secret}" width="9" height="9"/></svg>'),
        ("stream.sdp", "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
        ("script.vpy", "open('{secret}')"),
        ("meta.ffm", ";FFMETADATA1\ntitle={secret}\n"),
    ],
)
def test_a_file_that_refers_to_another_is_not_opened(tmp_path: Path, name: str, text: str) -> None:
    secret = samples.FACE
    (tmp_path / name).write_text(text.format(secret=secret))
    for reader in (VideoReader, AudioReader):
        with pytest.raises(MediaOpenError):
            reader(tmp_path / name)


def test_a_pattern_in_the_name_of_a_picture_is_not_expanded(tmp_path: Path) -> None:
    for name, grey in (("p%03d.png", 10), ("p000.png", 200), ("p001.png", 250)):
        cv2.imwrite(str(tmp_path / name), np.full((32, 32, 3), grey, np.uint8))
    (frame,) = VideoReader(tmp_path / "p%03d.png")
    assert frame.mean() == 10


def test_a_picture_that_is_too_large(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "huge.png"), np.zeros((15_000, 15_000), np.uint8))
    with pytest.raises(MediaOpenError, match="15000 x 15000"):
        VideoReader(tmp_path / "huge.png")


@pytest.mark.parametrize("late", [0.936, 0.04])
def test_a_videos_own_sound_stays_where_it_starts(
    tmp_path: Path, engine: LipSyncEngine, person: NDArray[np.uint8], late: float
) -> None:
    write_video(tmp_path / "plain.mkv", np.concatenate([person, person]), voice(1.0))
    source, delayed = tmp_path / "plain.mkv", tmp_path / "late.mkv"
    with av.open(str(source)) as container, av.open(str(delayed), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in container.streams}
        for packet in container.demux():
            if packet.pts is None:
                continue
            if packet.stream.type == "audio":
                shift = round(late / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    start = AudioReader(delayed).info.start_time - VideoReader(delayed).info.start_time
    assert start == pytest.approx(late, abs=0.03)
    engine.dub(delayed, None, tmp_path / "out.mkv", lossless=True)
    original, rate = read_audio(delayed)
    sound, same = read_audio(tmp_path / "out.mkv")
    assert rate == same
    silence = round(start * rate)
    assert not sound[:silence].any()
    end = silence + len(original)
    np.testing.assert_array_equal(sound[silence:end], original)
    assert not sound[end:].any()  # the last frame is filled up


def test_a_black_beginning(tmp_path: Path, engine: LipSyncEngine, person: NDArray[np.uint8]) -> None:
    """The identity is the first face's: the same video without its beginning gives the same mouths."""
    black = np.zeros((12, *person.shape[1:]), np.uint8)
    video = tmp_path / "lead.mkv"
    write_video(video, np.concatenate([black, person]), lossless=True)
    write_wav(tmp_path / "speech.wav", voice(37 / 25))
    result = engine.dub(video, tmp_path / "speech.wav", tmp_path / "out.mkv", lossless=True)
    assert (result.frames, result.first_face, result.bypassed) == (37, 12, 12)
    frames = list(VideoReader(tmp_path / "out.mkv"))
    assert not np.stack(frames[:12]).any()
    sharp = [cv2.Laplacian(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.CV_32F).std() for x in (frames[20], person[8])]
    assert sharp[0] > 0.6 * sharp[1]
    assert np.abs(frames[20].astype(int) - person[8]).mean() < 6


def test_a_damaged_video_gives_a_warning_and_strict_rejects_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], engine: LipSyncEngine
) -> None:
    data = bytearray((samples.FACE).read_bytes())
    rng = np.random.default_rng(3)
    middle = data.index(b"mdat") + 4000
    for at in rng.integers(middle, len(data) - 4000, 300):
        data[at] ^= 1 << int(rng.integers(8))
    (tmp_path / "bad.mp4").write_bytes(data)
    write_wav(tmp_path / "speech.wav", voice(1.6))
    args = ["run", str(tmp_path / "bad.mp4"), str(tmp_path / "speech.wav"), "--json", "--quiet", "-o"]
    status = main([*args, str(tmp_path / "out.mp4")])
    printed, complaint = capfd.readouterr()
    if status == 0:
        report = json.loads(printed)
        assert report["warnings"]
        assert "warning" in complaint
        assert main([*args, str(tmp_path / "strict.mp4"), "--strict"]) == QualityError.exit_code
        assert json.loads(capfd.readouterr().out)["error"]["code"] == "quality"
        assert not (tmp_path / "strict.mp4").exists()
    else:
        assert json.loads(printed)["error"]["code"] in ("media_truncated", "media_open", "no_face")
    assert not any(path.name.endswith(".part") for path in tmp_path.iterdir())


@pytest.fixture(scope="module")
def real_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("real")
    clip = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), np.uint8)
    for name in ("clip.mp4", "clip.mkv", "clip.mov"):
        with VideoWriter(folder / name, 64, 48, audio_rate=16_000) as writer:
            for frame in clip:
                writer.write(frame)
            writer.write_audio(voice(6 / 25))
    write_wav(folder / "voice.wav", voice(0.3))
    cv2.imwrite(str(folder / "still.png"), clip[0])
    cv2.imwrite(str(folder / "still.jpg"), clip[0])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_read_or_rejected(real_files: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(real_files)))
    content = bytearray(real_files[name])
    for _ in range(data.draw(st.integers(1, 8))):
        action = data.draw(st.sampled_from(["flip", "cut", "repeat", "zero"]))
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        if not content:
            break
        if action == "flip":
            content[at] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del content[at : at + data.draw(st.integers(1, 200))]
        elif action == "repeat":
            content[at:at] = content[at : at + 64]
        else:
            content[at : at + 32] = bytes(32)
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        for read in (lambda: sum(1 for _ in VideoReader(path)), lambda: read_audio(path)):
            with suppress(LipStreamError):
                read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_an_engine_says_what_to_do() -> None:
    code = """
import os, sys
import numpy as np
from lipstream import LipSyncEngine
from lipstream.errors import ForkError
engine = LipSyncEngine.load("tiny")
session = engine.session(np.stack([next(iter(__import__("lipstream.media").media.VideoReader(sys.argv[1])))] * 3))
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
wrong = 0
for use in (lambda: engine.session(sys.argv[1]), lambda: engine.prepare(sys.argv[1]), engine.warmup,
            lambda: session.push_audio(np.zeros(640, np.float32), 16000), session.flush, session.interrupt,
            lambda: list(session)):
    try:
        use()
        wrong += 1
    except ForkError as error:
        assert "after the fork" in str(error)
session.close()
os._exit(wrong)
"""
    done = subprocess.run([sys.executable, "-c", code, str(samples.FACE)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_one_thread_uses_one_core(tmp_path: Path) -> None:
    """No more CPU time than wall time, from opening the files to the finished one."""
    code = """
import sys, time, resource
from lipstream import LipSyncEngine
engine = LipSyncEngine.load("tiny", threads=1)
engine.dub(sys.argv[1], sys.argv[2], sys.argv[3])
before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
engine.dub(sys.argv[1], sys.argv[2], sys.argv[3])
after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
print((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / wall)
"""
    write_wav(tmp_path / "speech.wav", voice(2.0))
    command = [sys.executable, "-c", code, samples.FACE, tmp_path / "speech.wav", tmp_path / "out.mp4"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 1.1
