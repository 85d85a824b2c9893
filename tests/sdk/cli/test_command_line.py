"""The command `lipstream`: its output, its exit status, and that a failure leaves no files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import pytest
from lipstream import LipSyncEngine, __version__, errors
from lipstream.bundle import MANIFEST, SCHEMA
from lipstream.cli import diagnosis, main
from lipstream.cli.main import LIPSTREAM, build_parser
from voice_and_video import voice, write_wav

COMMANDS = ("run", "demo", "inspect", "export")


@pytest.fixture
def lipstream(
    engine: LipSyncEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: arguments -> (exit status, standard output, standard error).

    `run` uses the engine of the tests, unless a bundle, backend or number of threads is given.
    """
    load = LipSyncEngine.load

    def loaded(bundle: Any = "tiny", *, backend: str = "onnxruntime", threads: int = 0, **rest: Any) -> LipSyncEngine:
        usual = (bundle, backend, threads) == ("tiny", "onnxruntime", 0)
        return engine if usual else load(bundle, backend=backend, threads=threads, **rest)

    monkeypatch.setattr(LipSyncEngine, "load", loaded)

    def run(*args: object) -> tuple[int, str, str]:
        status = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def subprocess_of(*args: object, module: bool = True) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "lipstream"] if module else [str(Path(sys.executable).parent / "lipstream")]
    return subprocess.run([*start, *map(str, args)], capture_output=True, text=True, timeout=120, check=False)


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_run_writes_the_video_and_a_summary(lipstream: Any, media: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    status, said, bar = lipstream("run", media / "talk.mp4", media / "speech.wav", "-o", out, "--sheet", sheet)
    assert (status, frames_in(out)) == (0, 16)
    assert "16 frames" in said
    assert "16/16" in bar
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.shape[1] == 1600
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "out.mp4.provenance.json", "sheet.png"}


def test_run_as_json_with_the_videos_own_sound(lipstream: Any, media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    status, said, bar = lipstream("run", media / "talk.mp4", "-o", out, "--json", "--quiet", "--lossless", "--seed", 3)
    report = json.loads(said)
    assert status == 0
    assert bar == ""
    assert (report["output"], report["frames"]) == (str(out), 31)
    assert (report["width"], report["height"], report["bypassed"]) == (192, 160, 0)
    assert report["real_time_factor"] == pytest.approx(report["seconds"] / (31 / 25), rel=0.01)
    assert report["peak_memory_mib"] > 50


BAD_RUNS: dict[str, tuple[list[str], type[errors.LipStreamError]]] = {
    "no face": (["{media}/grey.mp4", "{media}/speech.wav"], errors.FaceNotFoundError),
    "no audio stream": (["{media}/exact.mkv"], errors.NoAudioError),
    "empty audio": (["{media}/talk.mp4", "{media}/empty.wav"], errors.NoAudioError),
    "NaN audio": (["{media}/talk.mp4", "{media}/nan.wav"], errors.AudioFormatError),
    "20 ms of audio": (["{media}/talk.mp4", "{media}/short.wav"], errors.AudioTooShortError),
    "text as video": (["{media}/text.mp4", "{media}/speech.wav"], errors.MediaOpenError),
    "text as audio": (["{media}/talk.mp4", "{media}/text.mp4"], errors.MediaOpenError),
    "sound as video": (["{media}/speech.wav"], errors.NoVideoError),
    "truncated video": (["{media}/truncated.mp4", "{media}/speech.wav"], errors.MediaTruncatedError),
    "missing video": (["{media}/none.mp4", "{media}/speech.wav"], errors.MediaOpenError),
    "missing audio": (["{media}/talk.mp4", "{media}/none.wav"], errors.MediaOpenError),
    "a folder as video": (["{media}", "{media}/speech.wav"], errors.MediaOpenError),
    "crf": (["{media}/talk.mp4", "{media}/speech.wav", "--crf", "99"], errors.ConfigError),
    "preset": (["{media}/talk.mp4", "{media}/speech.wav", "--preset", "warp"], errors.ConfigError),
    "lossless mp4": (["{media}/talk.mp4", "{media}/speech.wav", "--lossless"], errors.ConfigError),
    "face at": (["{media}/talk.mp4", "{media}/speech.wav", "--face-at", "left"], errors.ConfigError),
    "face at nan": (["{media}/talk.mp4", "{media}/speech.wav", "--face-at", "nan,1"], errors.ConfigError),
    "seed": (["{media}/talk.mp4", "{media}/speech.wav", "--seed", "-1"], errors.ConfigError),
    "threads": (["{media}/talk.mp4", "{media}/speech.wav", "--threads", "-1"], errors.ConfigError),
    "sheet": (["{media}/talk.mp4", "{media}/speech.wav", "--sheet", "{media}/none/a.png"], errors.OutputError),
    "sheet over input": (["{media}/talk.mp4", "{media}/speech.wav", "--sheet", "{media}/talk.mp4"], errors.OutputError),
    "backend": (["{media}/talk.mp4", "{media}/speech.wav", "--backend", "abacus"], errors.BackendError),
    "no bundle": (["{media}/talk.mp4", "{media}/speech.wav", "--bundle", "{media}"], errors.BundleNotFoundError),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_input_has_its_own_error_and_leaves_no_file(lipstream: Any, media: Path, tmp_path: Path, case: str) -> None:
    args, error = BAD_RUNS[case]
    before = sorted(media.iterdir())
    args = [arg.format(media=media) for arg in args]
    status, said, complaint = lipstream("run", *args, "-o", tmp_path / "out.mp4", "--json", "--quiet")
    report = json.loads(said)["error"]
    assert status == report["exit_status"] == error.exit_code
    assert report["code"] == error.code
    assert report["message"] in complaint
    assert "Traceback" not in complaint
    assert not any(tmp_path.iterdir())
    assert sorted(media.iterdir()) == before


@pytest.mark.parametrize(
    "place", ["{tmp}/none/out.mp4", "{tmp}/file/out.mp4", "/proc/out.mp4", "{tmp}/out.avi", "{tmp}/out", "{tmp}"]
)
def test_outputs_that_cannot_be_written(lipstream: Any, media: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("precious")
    out = place.format(tmp=tmp_path)
    status, _, complaint = lipstream("run", media / "talk.mp4", media / "speech.wav", "-o", out)
    assert status == errors.OutputError.exit_code
    assert "lipstream: " in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("which", ["video", "audio", "link"])
def test_the_input_is_never_the_output(lipstream: Any, media: Path, tmp_path: Path, which: str) -> None:
    video, audio = (Path(shutil.copy(media / name, tmp_path)) for name in ("talk.mp4", "speech.wav"))
    audio = audio.rename(tmp_path / "speech.mp4")
    (tmp_path / "link.mp4").symlink_to(video)
    out = {"video": video, "audio": audio, "link": tmp_path / "link.mp4"}[which]
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    status, _, complaint = lipstream("run", video, audio, "-o", out)
    assert status == errors.OutputError.exit_code
    assert "input" in complaint
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents


def damage_byte(bundle: Path) -> None:
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "weights.bin").write_bytes(data)


def newer_schema(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"schema": manifest["schema"] + 1}))


BAD_BUNDLES: dict[str, tuple[Callable[[Path], Any], type[errors.LipStreamError]]] = {
    "one flipped bit": (damage_byte, errors.BundleCorruptError),
    "missing file": (lambda bundle: (bundle / "denoiser.onnx").unlink(), errors.BundleCorruptError),
    "newer schema": (newer_schema, errors.BundleVersionError),
    "no manifest": (lambda bundle: (bundle / MANIFEST).unlink(), errors.BundleNotFoundError),
}


@pytest.mark.parametrize("case", BAD_BUNDLES)
def test_bad_bundles(lipstream: Any, tiny: Path, media: Path, tmp_path: Path, case: str) -> None:
    damage, error = BAD_BUNDLES[case]
    bundle = shutil.copytree(tiny, tmp_path / "bundle")
    damage(bundle)
    run = ("run", media / "talk.mp4", media / "speech.wav", "-o", tmp_path / "out.mp4", "--bundle", bundle)
    for args in (("inspect", bundle), run):
        status, said, complaint = lipstream(*args)
        assert (status, said) == (error.exit_code, "")
        assert str(bundle) in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_every_error_has_a_distinct_code_and_status() -> None:
    kinds = errors.LipStreamError.__subclasses__()
    codes, statuses = [kind.code for kind in kinds], [kind.exit_code for kind in kinds]
    assert len({*codes}) == len({*statuses}) == len(kinds)
    assert not {0, 1, 2, 130} & {*statuses}  # success, an internal error, a wrong command line, Ctrl-C
    assert max(statuses) < 126


def test_inspect(lipstream: Any, tiny: Path) -> None:
    status, said, _ = lipstream("inspect", tiny)
    manifest = json.loads((tiny / MANIFEST).read_text())
    assert status == 0
    for name, file in manifest["files"].items():
        assert f"{file['bytes']:>10} {file['sha256'][:12]} {name}" in said
    status, said, _ = lipstream("inspect", tiny, "--json")
    assert json.loads(said) == manifest | {"path": str(tiny), "signed_by": None}


def test_export_of_an_invalid_checkpoint(lipstream: Any, tmp_path: Path) -> None:
    status, said, _ = lipstream("export", tmp_path, "-o", tmp_path / "bundle", "--json")
    assert status == json.loads(said)["error"]["exit_status"] == errors.CheckpointError.exit_code
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: lipstream {command}" in said
    assert "--json" in said


def test_a_wrong_command_line_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["fly"], ["run"], ["run", "a.mp4"], ["run", "a.mp4", "-o", "b.mp4", "--crf", "good"]):
        assert main(args) == 2
        assert "--help" in capsys.readouterr().err
        assert main([*args, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"lipstream {__version__}\n"


def test_as_a_module_and_as_a_command(tmp_path: Path, tiny: Path) -> None:
    for module in (True, False):
        done = subprocess_of("inspect", tiny, "--json", module=module)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["schema"] == SCHEMA
        done = subprocess_of("run", tmp_path / "none.mp4", "-o", tmp_path / "out.mp4", "--bundle", tiny, module=module)
        assert done.returncode == errors.MediaOpenError.exit_code
        assert done.stdout == ""
        assert done.stderr.startswith("lipstream: no such file")
        assert not any(tmp_path.iterdir())


UNDER_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + (
    "import sys; from lipstream.cli import main; sys.exit(main(sys.argv[1:]))"
)
"""A background process may have been started with SIGINT ignored."""


def test_a_reader_that_stops_reading_is_no_error() -> None:
    """As in `lipstream inspect | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lipstream", "inspect", "tiny"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(write)
    assert done.returncode == 128 + 13
    assert not done.stderr


def test_ctrl_c_in_the_middle(media: Path, tmp_path: Path, tiny: Path) -> None:
    speech = write_wav(tmp_path / "speech.wav", voice(60.0))
    out = tmp_path / "out.mkv"
    out.write_bytes(b"an older result")
    command = [sys.executable, "-c", UNDER_CTRL_C, "run", media / "talk.mp4", speech, "-o", out]
    options = ["--bundle", tiny, "--threads", "1", "--json", "--lossless"]
    process = subprocess.Popen([*map(str, command), *map(str, options)], stdout=-1, stderr=-1, text=True)
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size > 100_000 for path in tmp_path.glob(".out*.part")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == json.loads(said)["error"]["exit_status"] == 130
    assert "Traceback" not in complaint
    assert {path.name for path in tmp_path.iterdir()} == {"speech.wav", "out.mkv"}
    assert out.read_bytes() == b"an older result"


def test_a_signal_that_interrupts_an_import_is_no_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native code turns the exception of the signal's handler into one of its own."""

    def interrupted(source: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("lipstream.bundle.Bundle.load", interrupted)
    assert main(["inspect", "tiny"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "lipstream: terminated: nothing was written\n"


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    done = subprocess_of("demo", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"demo.mp4", "demo.json", "demo.png"}
    assert json.loads((tmp_path / "out" / "demo.json").read_text()) == report
    assert frames_in(tmp_path / "out" / "demo.mp4") == report["frames"]
    assert report["bypassed"] == 0


def test_demo_where_nothing_can_be_written(tmp_path: Path, lipstream: Any) -> None:
    (tmp_path / "file").write_text("precious")
    status, _, complaint = lipstream("demo", "--out", tmp_path / "file" / "out")
    assert status == errors.OutputError.exit_code
    assert "file" in complaint


def test_every_command_can_be_quiet() -> None:
    from lipstream_training.cli import LIPSTREAM_TRAIN

    for program in (LIPSTREAM, LIPSTREAM_TRAIN):
        for command in program.commands():
            said = io.StringIO()
            with pytest.raises(SystemExit), contextlib.redirect_stdout(said):
                build_parser(program).parse_args([command.name, "--help"])
            assert "--quiet" in said.getvalue(), command.name


def test_doctor_fails_for_a_required_part_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = diagnosis.Finding("missing", "GPU", "no driver")
    monkeypatch.setattr(diagnosis, "_gpus", lambda machine: missing)
    assert main(["doctor"]) == 0
    assert main(["doctor", "--require", "gpu"]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("options", [["inspect", "tiny"], ["inspect", "tiny", "--json"], ["inspect", "none", "--json"]])
def test_a_full_disk_behind_standard_output_is_said(options: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "lipstream", *options]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    if "none" in options:
        assert done.returncode == 30
    else:
        assert (done.returncode, done.stderr.count("\n")) == (16, 1)
        assert "standard output cannot be written: No space left on device" in done.stderr


def test_names_do_not_control_the_terminal(tmp_path: Path) -> None:
    """A file's name that would clear the screen and set its title; and a character that an ASCII terminal lacks."""
    name = "\x1b[2J\x1b]0;owned\x07\u202e.mp4"
    command = [sys.executable, "-m", "lipstream", "run", "x.mp4", str(tmp_path / name), "-o", str(tmp_path / "o.mp4")]
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            command, capture_output=True, timeout=60, check=False, env={**os.environ, "PYTHONIOENCODING": encoding}
        )
        assert done.returncode == 10
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stderr
        assert b"\\x1b[2J" in done.stderr
