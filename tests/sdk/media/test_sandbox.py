"""Untrusted files, decoded in a process of their own: the same pictures, and an end to whatever a file does there."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from lipstream import LipSyncEngine, samples
from lipstream.cli import main
from lipstream.errors import (
    AudioTooShortError,
    MediaOpenError,
    MediaTruncatedError,
    NoAudioError,
    NoVideoError,
    OutputError,
)
from lipstream.media import AudioReader, VideoReader
from lipstream.media.container import open_input
from lipstream.media.hdr import Hdr
from lipstream.media.sandbox import SandboxedAudioReader, SandboxedReader
from lipstream.media.sandbox_child import Limits
from voice_and_video import voice, write_video, write_wav


def clip(
    path: Path, codec: str = "libx264", *, times: tuple[int, ...] = tuple(range(30)), name: str = "yuv420p"
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, name, Fraction(1, 25)
        for i, pts in enumerate(times):
            picture = np.full((48, 64, 3), 8 * (i % 30), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture).reformat(format=name)
            frame.pts, frame.time_base = pts, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def png(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """A grey picture of 32 x 32 with further chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (32).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress((b"\0" + b"\x80" * 32) * 32)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


@pytest.fixture(autouse=True)
def _leaves_no_process() -> object:
    yield
    end = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["mp4", "10 bit", "png", "sample"])
def test_pictures_and_properties_are_those_of_a_reader(tmp_path: Path, kind: str) -> None:
    path = {
        "mp4": lambda: clip(tmp_path / "a.mp4"),
        "10 bit": lambda: clip(tmp_path / "a.mkv", "ffv1", name="yuv422p10le"),
        "png": lambda: png(tmp_path / "a.png"),
        "sample": lambda: Path(samples.FACE),
    }[kind]()
    found, expected = SandboxedReader(path), VideoReader(path)
    assert found.info == expected.info
    wanted = list(expected.pictures())
    for _ in range(2):  # the second time by another process
        seen = list(found.pictures())
        assert len(seen) == len(wanted)
        for a, b in zip(seen, wanted, strict=True):
            assert a.format == b.format
            for x, y in zip(a.planes, b.planes, strict=True):
                np.testing.assert_array_equal(x, y)
    assert (found.interlaced, found.defects) == (expected.interlaced, expected.defects)


@pytest.mark.parametrize("kind", ["sample", "video", "aac", "late"])
def test_sound_and_its_properties_are_those_of_a_reader(tmp_path: Path, kind: str) -> None:
    path = Path(samples.SPEECH)
    if kind == "video":
        path = Path(samples.FACE)
    elif kind == "aac":
        path = write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 60, voice(2.4))
    elif kind == "late":  # more than is sent at once
        path = write_wav(tmp_path / "a.wav", np.tile(voice(3.0), 5), 16_000)
    found, expected = SandboxedAudioReader(path), AudioReader(path)
    assert found.info == expected.info
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(found)), np.concatenate(list(expected)))


def test_the_first_picture_is_held_as_by_a_reader(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    found, expected = SandboxedReader(path), VideoReader(path)
    for reader in (found, expected):
        reader.hold_first(3)
    assert found.info == expected.info
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_hdr_metadata_come_out_of_the_process() -> None:
    point = (Fraction(17, 50), Fraction(33, 100))
    for hdr in (Hdr(), Hdr((point,) * 4, (Fraction(1, 200), Fraction(1000)), (1000, 400)), Hdr(light=(1, 2))):
        assert Hdr.from_json(json.loads(json.dumps(hdr.to_json()))) == hdr


def test_a_dub_in_the_sandbox_is_the_same(media: Path, tmp_path: Path) -> None:
    engine = LipSyncEngine.load("tiny", threads=1)
    outputs = [tmp_path / "plain.mkv", tmp_path / "sandboxed.mkv"]
    for output, sandbox in zip(outputs, (False, True), strict=True):
        engine.dub(media / "talk.mp4", media / "speech.wav", output, lossless=True, sandbox=sandbox)
    for a, b in zip(*(VideoReader(output) for output in outputs), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(*(np.concatenate(list(AudioReader(output))) for output in outputs))


def test_with_sandbox_no_file_is_opened_in_the_process_itself(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def recorded(path: Path) -> av.container.InputContainer:
        opened.append(path)
        return open_input(path)

    for module in ("audio", "reader"):
        monkeypatch.setattr(f"lipstream.media.{module}.open_input", recorded)
    files = [str(media / "talk.mp4"), str(media / "speech.wav")]
    sheets = [tmp_path / "plain.png", tmp_path / "sandboxed.png"]
    for sheet, options in zip(sheets, ([], ["--sandbox"]), strict=True):
        opened.clear()
        out = ["-o", str(sheet.with_suffix(".mkv")), "--lossless", "--sheet", str(sheet), "--threads", "1", "--quiet"]
        assert main(["run", *files, *out, *options]) == 0
        assert (media / "talk.mp4" in opened) == (not options)
        assert not {Path(file) for file in files} & {*opened} or not options
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


@pytest.mark.parametrize("wrong", ["video", "sound", "short", "output"])
def test_a_dub_in_the_sandbox_that_fails_leaves_no_process(wrong: str, media: Path, tmp_path: Path) -> None:
    engine = LipSyncEngine.load("tiny", threads=1)
    video = media / ("text.mp4" if wrong == "video" else "talk.mp4")
    audio = media / {"sound": "text.mp4", "short": "short.wav"}.get(wrong, "speech.wav")
    with pytest.raises((MediaOpenError, AudioTooShortError, OutputError)):
        engine.dub(video, audio, tmp_path / ("none/out.mp4" if wrong == "output" else "out.mp4"), sandbox=True)
    assert not any(tmp_path.iterdir())


def test_errors_keep_their_class(tmp_path: Path) -> None:
    with pytest.raises(MediaOpenError, match="no such file"):
        SandboxedReader(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaOpenError, match="cannot be read as media"):
        SandboxedReader(tmp_path / "text.mp4")
    with pytest.raises(NoVideoError):
        SandboxedReader(samples.SPEECH)
    with pytest.raises(NoAudioError):
        SandboxedAudioReader(clip(tmp_path / "silent.mp4"))
    with pytest.raises(MediaOpenError, match="no such file"):
        SandboxedAudioReader(tmp_path / "missing.wav")
    whole = clip(tmp_path / "whole.mkv", "ffv1").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((MediaTruncatedError, MediaOpenError)):
        list(SandboxedReader(tmp_path / "cut.mkv").pictures())


def test_a_codec_that_is_not_listed_does_not_run(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", "huffyuv", name="yuv422p")
    assert len(list(VideoReader(path).pictures())) == 30
    with pytest.raises(MediaOpenError, match="encoded as huffyuv"):
        SandboxedReader(path)
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("g726", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaOpenError, match="sound encoded as"):
        SandboxedAudioReader(tmp_path / "a.wav")


def test_more_pixels_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaOpenError, match="shows 64 x 48 pixels"):
        SandboxedReader(clip(tmp_path / "a.mp4"), limits=Limits(pixels=1000))


def test_a_picture_that_takes_memory_ends_its_process_alone(tmp_path: Path) -> None:
    """An ICC profile of a gigabyte, in a megabyte of file."""
    profile = zlib.compressobj(1)
    packed = b"".join(profile.compress(bytes(1 << 24)) for _ in range(64)) + profile.flush()
    path = png(tmp_path / "bomb.png", (b"iCCP", b"x\0\0" + packed))
    assert path.stat().st_size < 6 << 20
    with pytest.raises((MediaOpenError, MediaTruncatedError)):
        SandboxedReader(path, limits=Limits(memory=1 << 30), deadline=30)


def test_a_file_that_goes_on_for_ever_is_given_up(tmp_path: Path) -> None:
    """Two pictures that are 11 days apart: 25 million frames."""
    path = clip(tmp_path / "long.mkv", "ffv1", times=(0, 25 * 10**6))
    reader = SandboxedReader(path, deadline=2)
    assert len(list(itertools.islice(reader.pictures(), 100))) == 100
    with pytest.raises(MediaOpenError, match="takes too long"):
        for _ in reader.pictures():
            pass


def test_a_client_that_leaves_ends_the_decoding(tmp_path: Path) -> None:
    reader = SandboxedReader(clip(tmp_path / "long.mkv", "ffv1", times=(0, 25 * 10**6)))
    threading.Timer(0.3, reader.stop).start()
    with pytest.raises(MediaOpenError, match="was stopped"):
        for _ in reader.pictures():
            pass


def test_a_decoder_that_crashes_is_an_error_of_its_file(tmp_path: Path) -> None:
    reader = SandboxedReader(clip(tmp_path / "long.mkv", "ffv1", times=(0, 25 * 10**6)))
    decoder = reader._running[0]
    frames = reader.pictures()
    next(frames)
    decoder._process.kill()
    with pytest.raises(MediaOpenError, match="crashed"):
        list(frames)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter of system calls is Linux's")
@pytest.mark.parametrize(
    "call",
    [
        "import socket; socket.socket()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 0)",
        "open('/tmp/lipstream-sandbox-test', 'w').write('x' * 100000)",
    ],
)
def test_the_process_has_no_network_no_programs_no_signals_and_no_files(call: str) -> None:
    program = f"from lipstream.media.sandbox_child import _restrict, Limits; _restrict(Limits())\n{call}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "PermissionError" in done.stderr or "File too large" in done.stderr or done.returncode == -25


@pytest.mark.parametrize(
    "call",
    [
        "open(f'/proc/{os.getppid()}/mem', 'r+b')",
        "os.remove(given)",
        "os.rename(given, given + '2')",
        "os.truncate(given, 0)",
        "open(given, 'a')",
        "os.mkdir(given + '.d')",
        "libc.tgkill(os.getppid(), os.getppid(), 0) and give_up()",
        "libc.process_vm_writev(os.getppid(), None, 0, None, 0, 0) and give_up()",
        "libc.syscall(425, 1, None) and give_up()",  # io_uring_setup
        "libc.syscall(41 | 0x40000000, 2, 1, 0) < 0 and give_up()",  # socket, by its x32 number
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="numbers of x86-64")
def test_the_process_changes_nothing_of_others(call: str, tmp_path: Path) -> None:
    given = tmp_path / "file"
    given.write_bytes(b"mine")
    program = f"""
import ctypes, os
from lipstream.media.sandbox_child import _restrict, Limits
libc, given = ctypes.CDLL(None, use_errno=True), {str(given)!r}
def give_up():
    assert ctypes.get_errno() == 1
    raise PermissionError
_restrict(Limits())
assert open(given).read() == 'mine'
{call}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "PermissionError" in done.stderr, done.stderr
    assert given.read_bytes() == b"mine"


def test_no_process_is_left_when_only_a_part_was_wanted(tmp_path: Path) -> None:
    reader = SandboxedReader(clip(tmp_path / "a.mp4"))
    frames = reader.pictures()
    next(frames)
    SandboxedReader(tmp_path / "a.mp4").close()  # of which none was wanted
    reader.close()
    reader.close()
    assert not multiprocessing.active_children()
    with pytest.raises(MediaOpenError):
        next(frames)


@pytest.mark.parametrize("where", ["file", "standard input", "daemon"])
def test_a_program_that_cannot_start_processes_is_told_so(where: str, tmp_path: Path) -> None:
    """The file is not to blame."""
    work = f"from lipstream.media.sandbox import SandboxedReader; SandboxedReader({str(clip(tmp_path / 'a.mp4'))!r})"
    if where == "daemon":
        work = f"import multiprocessing; multiprocessing.current_process()._config['daemon'] = True; {work}"
    (tmp_path / "program.py").write_text(work)
    command = [sys.executable, "-" if where == "standard input" else str(tmp_path / "program.py")]
    done = subprocess.run(command, input=work, capture_output=True, text=True, timeout=60, check=False)
    assert "lipstream.errors.ConfigError" in done.stderr, done.stderr
    assert ("ProcessPoolExecutor" if where == "daemon" else "__main__") in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_ctrl_c_is_for_the_program_not_for_its_decoders(tmp_path: Path) -> None:
    """A terminal sends it to all of them."""
    reader = SandboxedReader(clip(tmp_path / "a.mkv", "ffv1", times=tuple(range(200))))
    os.kill(reader._running[0]._process.pid, signal.SIGINT)
    assert sum(1 for _ in reader.pictures()) == 200
