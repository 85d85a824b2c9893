"""Invalid arguments: a typed error that names them, in the library and on the command line, with JSON too."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from lipstream import Bundle, FaceOptions, LipSyncEngine, samples
from lipstream.cli import main
from lipstream.errors import AudioFormatError, BundleNotFoundError, ConfigError, MediaOpenError, OutputError
from lipstream.media import AudioReader, FrameLoop, VideoReader, VideoWriter, ensure_distinct
from lipstream.session import Frame, PreparedReference, RealtimePlayer


@pytest.fixture(scope="module")
def engine() -> LipSyncEngine:
    return LipSyncEngine.load("tiny", threads=1)


@pytest.mark.parametrize("threads", [-1, 5000, 10**10, 1.5, "two", None])
def test_threads(threads: Any) -> None:
    with pytest.raises(ConfigError, match="threads"):
        LipSyncEngine.load("tiny", threads=threads)


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"length": -1},
        {"length": 2.5},
        {"seed": 1.5},
        {"seed": "one"},
        {"face": FaceOptions(at=("1", "2"))},
        {"face": FaceOptions(at=(1.0,))},
        {"max_pending": "long"},
        {"loop_bytes": 0},
    ],
)
def test_options_of_a_session(engine: LipSyncEngine, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        engine.session(samples.FACE, **options)


@pytest.fixture(scope="module")
def prepared(engine: LipSyncEngine) -> PreparedReference:
    return engine.prepare(samples.FACE, seconds=0.5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("load", {"bundle": None}),
        ("load", {"bundle": 5}),
        ("load", {"backend": []}),
        ("load", {"provider": 1.5}),
        ("load", {"metrics": "counts"}),
        ("session", {"face": "hold"}),
        ("session", {"length": "2"}),
        ("session", {"loop_bytes": "2"}),
        ("session", {"max_pending": float("nan")}),
        ("prepare", {"face": {"policy": "hold"}}),
        ("prepare", {"seconds": "2"}),
        ("prepare", {"seconds": float("nan")}),
        ("prepare", {"loop_bytes": "2"}),
        ("dub", {"preset": None}),
        ("dub", {"preset": []}),
        ("dub", {"face": "hold"}),
        ("dub", {"progress": 5}),
        ("dub", {"crf": "18"}),
        ("dub", {"codec": {}}),
        ("warmup", {"chunks": 2.5}),
        ("warmup", {"chunks": 0}),
        ("warmup", {"sessions": 2.0}),
        ("warmup", {"sessions": 0}),
        ("capacity", {"share": "x"}),
        ("capacity", {"share": -1}),
        ("capacity", {"share": 1.5}),
        ("capacity", {"use": 5}),
        ("capacity", {"reference": str(samples.FACE)}),
        ("player", {"session": None}),
    ],
)
def test_an_argument_of_a_wrong_type_or_value_is_named(
    engine: LipSyncEngine, prepared: PreparedReference, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    given: dict[str, dict[str, Any]] = {
        "session": {"video": prepared},
        "prepare": {"video": samples.FACE},
        "capacity": {"reference": prepared},
        "dub": {"video": samples.FACE, "audio": samples.SPEECH, "output": tmp_path / "out.mp4"},
    }
    call: Any = RealtimePlayer if method == "player" else getattr(engine, method)
    with pytest.raises(ConfigError) as caught:
        call(**given.get(method, {}) | options)
    (name,) = options
    assert name in caught.value.found
    assert caught.value.expected
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("timeout", ["1", float("nan"), []])
def test_an_invalid_timeout(engine: LipSyncEngine, prepared: PreparedReference, timeout: Any) -> None:
    with engine.session(prepared) as session, pytest.raises(ConfigError, match="timeout"):
        session.wait(timeout)


def test_a_folder_of_models_that_is_no_path() -> None:
    with pytest.raises(ConfigError, match="insightface"):
        FaceOptions(insightface=5)  # type: ignore[arg-type]


def test_public_objects_print_as_one_short_line(engine: LipSyncEngine, prepared: PreparedReference) -> None:
    with engine.session(prepared, idle="reference") as session, RealtimePlayer(session) as player:
        assert session.wait(10)
        frame = next(iter(session))
        for thing in (engine, prepared, session, player, frame, frame.picture, Bundle.load("tiny"), FaceOptions()):
            assert len(repr(thing)) < 150
            assert "\n" not in repr(thing)
            assert type(thing).__name__ in repr(thing)
            assert "array" not in repr(thing)
    assert "closed" in repr(session)


def test_frames_compare_by_identity() -> None:
    image, audio = np.zeros((2, 2, 3), np.uint8), np.zeros((640, 1), np.float32)
    a, b = (Frame(image, audio, 0.0, 0, False) for _ in range(2))
    assert a == a
    assert a != b
    assert len({a, b}) == 2


def test_links_in_a_circle_and_names_too_long(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(MediaOpenError):
            VideoReader(path)
        with pytest.raises(BundleNotFoundError):
            LipSyncEngine.load(path)
    with pytest.raises(OutputError):
        ensure_distinct("a\0b", samples.FACE)


def test_sixteen_channels_are_rejected_with_a_fix(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "many.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="hexadecagonal")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16 * 1600), np.int16), "s16", "hexadecagonal")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(AudioFormatError, match="16 audio channels") as caught:
        AudioReader(tmp_path / "many.wav")
    assert "-ac 2" in caught.value.fix


def test_a_picture_too_wide_for_the_codec_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="60000x60 pixels"):
        VideoWriter(tmp_path / "out.mp4", 60_000, 60)
    assert not any(tmp_path.iterdir())


def test_an_endless_loop_reverses_at_its_disk_limit() -> None:
    frames = [np.full((4, 5, 3), i, np.uint8) for i in range(10)]
    with FrameLoop(iter(frames), max_bytes=4 * 60) as loop:
        assert [next(loop)[0] for _ in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    with FrameLoop(iter(frames), max_bytes=1) as loop:
        assert [next(loop)[0] for _ in range(3)] == [0, 0, 0]
    with pytest.raises(ConfigError):
        FrameLoop(iter(frames), 0)


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ([], 2),
        (["run"], 2),
        (["run", "VIDEO", "SOUND", "-o", "OUT/out.mp4", "--threads", "10000000000"], ConfigError.exit_code),
        (["run", "VIDEO", "SOUND", "-o", "OUT/out.mp4", "--sheet", "OUT"], OutputError.exit_code),
        (["run", "VIDEO", "SOUND", "-o", "OUT/out.mp4", "--face-at", "a,b"], ConfigError.exit_code),
        (["demo", "--out", "BLOCKED"], OutputError.exit_code),
        (["inspect", "OUT"], BundleNotFoundError.exit_code),
    ],
)
def test_every_failure_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], status: int
) -> None:
    blocked = tmp_path / "blocked"
    (blocked / "demo.json").mkdir(parents=True)
    places = {"VIDEO": samples.FACE, "SOUND": samples.SPEECH, "OUT": tmp_path, "BLOCKED": blocked}
    for word, place in places.items():
        args = [arg.replace(word, str(place)) for arg in args]
    assert main([*args, "--json"]) == status
    assert json.loads(capsys.readouterr().out)["error"]["exit_status"] == status


def test_a_bug_prints_json_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Bundle, "load", broken)
    assert main(["inspect", "--json"]) == 70
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["code"] == "internal"
    assert "please report" in printed.err


def test_idle_graphs_do_not_spin() -> None:
    """An engine that is idle after a run takes almost no CPU time."""
    engine = LipSyncEngine.load("tiny", threads=2)
    engine.warmup(2)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.2


def test_an_address_is_named_as_it_was_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "https://example.com/face.mp4", str(samples.SPEECH), "-o", str(tmp_path / "out.mp4")]) != 0
    assert "https://example.com/face.mp4 is an address" in capsys.readouterr().err


@pytest.mark.parametrize("length", [240, 252])
def test_a_name_that_is_too_long_fails_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """With .provenance.json, or by itself."""
    monkeypatch.setattr(LipSyncEngine, "session", lambda *_, **__: pytest.fail("the work has begun"))
    out = tmp_path / ("a" * length + ".mp4")
    assert main(["run", str(samples.FACE), str(samples.SPEECH), "-o", str(out)]) != 0
    assert "too long" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_inspect_a_missing_file_of_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "missing.pth"]) != 0
    assert "no such file: missing.pth" in capsys.readouterr().err


def test_a_format_that_is_not_opened_is_called_so(tmp_path: Path) -> None:
    raw = tmp_path / "raw.sln"  # bare samples, which any file could be
    raw.write_bytes(bytes(4000))
    with pytest.raises(MediaOpenError, match="a format that is not opened"):
        AudioReader(raw)


def test_gsm_is_read(tmp_path: Path) -> None:
    """Full-rate GSM 06.10: frames of 33 bytes, 160 samples at 8 kHz."""
    call = tmp_path / "call.gsm"
    call.write_bytes((b"\xd0" + bytes(32)) * 100)
    assert sum(len(block) for block in AudioReader(call)) == 100 * 160
