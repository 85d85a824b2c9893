"""Files that are being written: what is removed of a killed writer, and what of a user's own never is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from lipstream import samples
from lipstream.atomic import Partial, write_file, write_files
from lipstream.cli import main
from lipstream.errors import OutputError


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.mp4.0123abcd.part"
    left.write_bytes(b"half")
    folder = tmp_path / ".out.mp4.00000000.part"
    folder.mkdir()
    Partial(tmp_path / "out.mp4").remove()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [".out.mp4.backup.part", ".out.mp4.part", ".out.mp4.0123ABCD.part", ".out.mp4.0123abcd.part.part", "out.part"],
)
def test_files_of_other_names_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    (tmp_path / f"{name}.d").mkdir()
    write_file(tmp_path / "out.mp4", b"new")
    assert (tmp_path / name).read_bytes() == b"mine"
    assert (tmp_path / f"{name}.d").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_a_pipe_or_a_link_of_such_a_name_is_left_alone(tmp_path: Path) -> None:
    """A pipe would be waited for, a link would be followed."""
    os.mkfifo(tmp_path / ".out.mp4.0123abcd.part")
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / ".out.mp4.0123abce.part").symlink_to(tmp_path / "mine")
    done = threading.Thread(target=write_file, args=(tmp_path / "out.mp4", b"new"), daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()
    assert (tmp_path / "out.mp4").read_bytes() == b"new"
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert len([*tmp_path.iterdir()]) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="has no such permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    out = tmp_path / "out.mp4"
    write_file(out, b"first")
    out.chmod(mode)
    write_file(out, b"second")
    assert (out.read_bytes(), out.stat().st_mode & 0o777) == (b"second", mode)


def test_no_file_is_written_over_one_that_the_command_needs(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("cert.pem", "key.pem")}
    for file in files.values():
        file.write_bytes(b"precious")
    out = tmp_path / "out.mp4"
    run = [sys.executable, "-m", "lipstream", "run", samples.FACE, samples.SPEECH]
    signed = ["--sign", files["cert.pem"], files["key.pem"]]
    for wrong in (
        ["-o", out, "--sheet", files["key.pem"], *signed],
        ["-o", files["cert.pem"], *signed],
        ["-o", out, "--sheet", tmp_path / "out.mp4.provenance.json"],
        ["-o", out, "--sheet", out],
    ):
        done = subprocess.run([*map(str, run + wrong)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 16, done.stderr
        assert "is also the input" in done.stderr
        assert all(file.read_bytes() == b"precious" for file in files.values())
        assert {*tmp_path.iterdir()} == {*files.values()}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As of some network file systems: nothing is removed there, since it may be in use."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("lipstream.atomic.fcntl.flock", flock)
    (tmp_path / ".out.mp4.0123abcd.part").write_bytes(b"perhaps in use")
    write_file(tmp_path / "out.mp4", b"new")
    assert (tmp_path / "out.mp4").read_bytes() == b"new"
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("wrong", ["no/such/folder.json", "folder", "x" * 256])
def test_of_several_files_none_is_written_if_one_cannot_be(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "first").write_bytes(b"old")
    with pytest.raises(OutputError, match="cannot be written"):
        write_files({tmp_path / "first": b"new", tmp_path / wrong: b"new"})
    assert (tmp_path / "first").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"first", "folder"}
    write_files({tmp_path / "first": b"new", tmp_path / "second": b"too"})
    assert [(tmp_path / name).read_bytes() for name in ("first", "second")] == [b"new", b"too"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """A file renamed to /dev/null would replace it for the whole system."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="a device or a pipe"):
            write_file(tmp_path / name, b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link"}
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("wrong", ["out.mp4", "sheet.png", "out.mp4.provenance.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_name_that_cannot_be_a_file_fails_before_the_dub(tmp_path: Path, wrong: str, make: Any) -> None:
    make(tmp_path / wrong)
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    with mock.patch("lipstream.dub._frames", side_effect=AssertionError("the dub has begun")):
        status = main(["run", str(samples.FACE), str(samples.SPEECH), "-o", str(out), "--sheet", str(sheet)])
    assert status == OutputError.exit_code
    assert [path.name for path in tmp_path.iterdir()] == [wrong]
