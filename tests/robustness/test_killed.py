"""Killed, terminated, or disk full at any moment: the old or the new file is complete, no partial file is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import pytest
from lipstream import samples
from lipstream.atomic import Partial, write_file
from lipstream.media import VideoReader

RUN = [sys.executable, "-m", "lipstream", "run", str(samples.FACE), str(samples.SPEECH), "--quiet"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command with half a second of sound."""
    speech = tmp_path_factory.mktemp("short") / "speech.wav"
    with wave.open(str(samples.SPEECH)) as whole, wave.open(str(speech), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(whole.getframerate() // 2))
    return [*RUN[:5], str(speech), "--quiet", "--preset", "ultrafast"]


def frames_in(path: Path) -> int:
    return sum(1 for _ in VideoReader(path))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, short: list[str]) -> bytes:
    """A finished file."""
    out = tmp_path_factory.mktemp("old") / "out.mp4"
    subprocess.run([*short, "-o", str(out)], check=True, capture_output=True)
    return out.read_bytes()


def wait_for_partial(folder: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not any(path.name.endswith(".part") for path in folder.iterdir()):
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_keeps_the_old_file(tmp_path: Path, old: bytes, number: signal.Signals) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(old)
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = start + "from lipstream.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *RUN[3:], "-o", str(out), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for_partial(tmp_path, process)
        time.sleep(0.3)
        process.send_signal(number)
        printed, complaint = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"nothing was written" in complaint
    assert json.loads(printed)["error"]["exit_status"] == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert out.read_bytes() == old


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.1])
def test_partial_files_are_removed_after_sigkill(tmp_path: Path, old: bytes, short: list[str], seconds: float) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(old)
    with subprocess.Popen([*RUN, "-o", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for_partial(tmp_path, process)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    assert out.read_bytes() == old or frames_in(out) > 0
    assert len([*tmp_path.iterdir()]) <= 2
    subprocess.run([*short, "-o", str(out)], check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "out.mp4.provenance.json"}


def test_files_of_a_running_writer_are_kept(tmp_path: Path) -> None:
    writer = Partial(tmp_path / "out.mp4")
    other = Partial(tmp_path / "out.mp4")
    assert writer.path.exists()
    assert other.path.exists()
    for partial in (writer, other):
        partial.remove()
        partial.remove()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["é" * 127, "😀" * 63, "x" * 255])
def test_a_name_as_long_as_names_can_be(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, b"whole")
    assert (tmp_path / name).read_bytes() == b"whole"
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a disk of our own needs root and mount")
@pytest.mark.parametrize("kibibytes", [64, 512])
def test_a_full_disk(tmp_path: Path, kibibytes: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (disk / "out.mkv").write_bytes(b"old")
        done = subprocess.run(
            [*RUN, "-o", str(disk / "out.mkv"), "--lossless", "--json"], capture_output=True, check=False, timeout=120
        )
        assert json.loads(done.stdout)["error"]["code"] == "output", done.stderr
        assert [path.name for path in disk.iterdir()] == ["out.mkv"]
        assert (disk / "out.mkv").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_the_end_of_the_process_during_a_dub_keeps_the_old_file(tmp_path: Path, old: bytes) -> None:
    """The main thread ends while a daemon thread dubs: what is done so far does not pass for the whole."""
    out = tmp_path / "out.mp4"
    out.write_bytes(old)
    code = (
        "import sys, threading\n"
        "from lipstream import LipSyncEngine, samples\n"
        "engine, started = LipSyncEngine.load('tiny', threads=2), threading.Event()\n"
        "def dub():\n"
        "    engine.dub(samples.FACE, samples.SPEECH, sys.argv[1], progress=lambda done, total: started.set())\n"
        "threading.Thread(target=dub, daemon=True).start()\n"
        "started.wait()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, timeout=120, check=False)
    assert out.read_bytes() == old
