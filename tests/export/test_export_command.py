"""`lipstream export`: the same bytes each time, no files left by a failure, typed errors for every invalid input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lipstream.bundle import Bundle
from lipstream.cli import main
from lipstream.errors import CheckpointError, ConfigError, LipStreamError, OutputError, ParityError
from lipstream_export import command, parity
from lipstream_export.command import export
from lipstream_models.parts import StudentParts
from safetensors.torch import load_file, save_file
from toys import CONFIG, toy_parts

SMALL = replace(CONFIG, num_layers=1, latent_size=(2, 2))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    toy_parts(SMALL).save(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_exports_the_same_bytes_each_time_and_reports(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "first"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["graphs"] == ["audio_encoder", "denoiser", "video_decoder", "video_encoder"]
    assert first["bytes"] == sum(file["bytes"] for file in Bundle.load(tmp_path / "first").manifest.files.values())
    report = json.loads((tmp_path / "first.parity.json").read_text())
    assert report == first["parity"]
    assert report["passed"]

    assert main(["export", str(checkpoint), "-o", str(tmp_path / "second")]) == 0
    assert str(tmp_path / "second") in capsys.readouterr().out
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert (tmp_path / "first.parity.json").read_bytes() == (tmp_path / "second.parity.json").read_bytes()

    # a graph that computes something else gets neither the name nor the place of the bundle that is there
    before = contents(tmp_path)
    monkeypatch.setitem(parity.TOLERANCE, "fp32", 1e-12)
    with pytest.raises(ParityError, match="disagree on graph"):
        export(checkpoint, tmp_path / "first")
    assert contents(tmp_path) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint",
        "first",
        "first.parity.json",
        "second",
        "second.parity.json",
    ]


def description(old: str, new: str) -> Callable[[Path], None]:
    """A change of checkpoint.json."""

    def change(folder: Path) -> None:
        path = folder / "checkpoint.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def extras(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "extras.safetensors"
        tensors = load_file(path) | {name.replace("_", "."): x for name, x in changes.items()}
        save_file({name: x for name, x in tensors.items() if x is not None}, path)

    return change


def poison(folder: Path) -> None:
    path = folder / "student.safetensors"
    state = load_file(path)
    state["blocks.0.ffn.0.bias"][3] = float("nan")
    save_file(state, path)


def truncate(folder: Path) -> None:
    path = folder / "taehv.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "checkpoint.json").unlink(), "is not a checkpoint"),
        (lambda folder: (folder / "student.safetensors").unlink(), "student.safetensors"),
        (lambda folder: (folder / "extras.safetensors").unlink(), "extras.safetensors"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "JSONDecodeError"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), "does not load"),
        (lambda folder: (folder / "checkpoint.json").write_bytes(b"\xff\xfe"), "UnicodeDecodeError"),
        (description('"student"', '"pupil"'), "'student'"),
        (description('"ffn_dim"', '"fnn_dim"'), "fnn_dim"),
        (description('"ffn_dim": 40', '"ffn_dim": 48'), "size mismatch"),
        (description('"ffn_dim": 40', '"ffn_dim": "40"'), "TypeError"),
        (description('"ffn_dim": 40', '"ffn_dim": -40'), "RuntimeError"),
        (description('"num_layers": 1', '"num_layers": 2'), "Missing key"),
        (description('"text_len": 3', '"text_len": 5'), r"text of .* is \(3, 8\)"),
        (extras(mask_pixel=torch.ones(8, 8)), r"mask.pixel of .* is \(8, 8\)"),
        (extras(mask_latent=None), "mask.latent of .* is missing"),
        (extras(text=None), "'text'"),
        (poison, "blocks.0.ffn.0.bias.*not finite"),
        (truncate, "SafetensorError"),
    ],
)
def test_a_corrupt_checkpoint_is_rejected_with_a_reason(
    checkpoint: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=message) as error:
        export(checkpoint, tmp_path / "bundle")
    assert len(str(error.value)) < 1000
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_errors_name_the_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a checkpoint"):
        export(tmp_path / "nowhere", tmp_path / "bundle")


def test_models_of_other_latents_are_refused(tmp_path: Path) -> None:
    ours, other = toy_parts(SMALL), toy_parts(replace(SMALL, latent_channels=5))
    replace(ours, taehv=other.taehv).save(tmp_path)
    with pytest.raises(CheckpointError, match="4 latent channels, the TAEHV 5"):
        StudentParts.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"), [({"spatial": 4}, "4 times smaller, the TAEHV's 8"), ({"audio_dim": 12}, "takes 12")]
)
def test_parts_that_were_not_trained_together_are_refused(tmp_path: Path, change: Any, complaint: str) -> None:
    toy_parts(replace(SMALL, **change)).save(tmp_path)
    with pytest.raises(CheckpointError, match=complaint):
        StudentParts.from_checkpoint(tmp_path)


def test_a_window_that_is_not_whole_chunks_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    description('"window": 7', '"window": 8')(checkpoint)
    with pytest.raises(ConfigError, match=r"window 8 with sink 1.*not a whole number of chunks of 3"):
        export(checkpoint, tmp_path / "bundle")


def test_an_unwritable_output_is_an_error(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "bundle"):
        with pytest.raises(OutputError):
            export(checkpoint, out)

    def full(*arguments: object, **options: object) -> Bundle:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "export_bundle", full)
    with pytest.raises(OutputError, match="No space left"):
        export(checkpoint, tmp_path / "bundle")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint", "file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check"], "--check, for released files"),
        (["--model", "14b"], "--model, for released files"),
        (["--calibrate", "video.mp4", "speech.wav"], "without --precision fp8"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", "tiny", "-o", str(tmp_path / "bundle"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_all_errors_have_distinct_codes() -> None:
    def leaves(root: type[LipStreamError]) -> list[type[LipStreamError]]:
        return [root, *(leaf for child in root.__subclasses__() for leaf in leaves(child))]

    for attribute in ("code", "exit_code"):
        values = [getattr(error, attribute) for error in leaves(LipStreamError)]
        assert len(set(values)) == len(values)
