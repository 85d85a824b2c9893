"""The recorded outputs of the original implementation, on both backends; and the check itself on generated files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from safetensors.torch import save_file
from toys import toy_taehv

SHARED = Path(__file__).parents[2] / "shared"
FOLDER = SHARED / "golden"
EXPECTED = ["dit_stream_w7s1", "dit_stream_w10s1", "face_affine", "taehv", "wan_vae", "wav2vec_features"]
FILES = sorted({*EXPECTED, *(path.stem for path in FOLDER.glob("*.safetensors"))})


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("name", FILES)
def test_recorded_outputs(name: str, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        if os.environ.get("CI") and SHARED.is_dir():
            pytest.fail(f"{path} is missing")
        pytest.skip(f"no golden vectors at {path}")
    status = golden.main([str(path), "--backend", backend])
    assert status == 0, capsys.readouterr().out


def record(path: Path, *, kind: str = "taehv", error: float = 0.0, more: bool = False) -> Path:
    """A file as the original would write it: a small autoencoder and its result for a whole clip."""
    torch.manual_seed(0)
    model = toy_taehv()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        latent, video = torch.randn(1, 4, 4, 2, 3), torch.rand(1, 8, 3, 16, 24)
        decoded, _ = model.decode(latent, model.decoder_memory(1, 16, 24))
        encoded, _ = model.encode(video, model.encoder_memory(1, 16, 24))
    tensors = {f"weights/{name}": x.bfloat16() for name, x in model.state_dict().items()}
    tensors |= {"in/latent": latent, "in/video": video}
    tensors |= {"out/decoded": decoded[:, 3:] * (1 + error), "out/encoded": encoded}
    if more:
        tensors["out/other"] = torch.zeros(1)
    save_file({name: x.contiguous() for name, x in tensors.items()}, path, {"golden": json.dumps({"kind": kind})})
    return path


def results(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_file_that_agrees_passes(backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path / "good.safetensors")
    assert golden.main([str(path), "--backend", backend]) == 0
    name, kind, error, verdict = capsys.readouterr().out.split()
    assert (name, kind, verdict) == ("good", "taehv", "PASS")
    assert 0 <= float(error.removeprefix("rel=")) < 1e-5


def test_a_file_that_differs_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By twice the tolerance; and half of it passes."""
    assert golden.main([str(record(tmp_path / "bad.safetensors", error=2e-4))]) == 1
    assert "bad taehv rel=2.00e-04 FAIL" in capsys.readouterr().out
    assert golden.main([str(record(tmp_path / "near.safetensors", error=5e-5))]) == 0


def test_an_unknown_kind_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main([str(record(tmp_path / "new.safetensors", kind="sheep"))]) == 1
    assert "new sheep rel=none FAIL unknown kind" in capsys.readouterr().out


def test_an_output_that_is_not_compared_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main([str(record(tmp_path / "more.safetensors", more=True))]) == 1
    assert "FAIL not compared: other" in capsys.readouterr().out


def test_json_has_one_object_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = record(tmp_path / "good.safetensors"), record(tmp_path / "bad.safetensors", error=1e-2)
    unknown = record(tmp_path / "new.safetensors", kind="sheep")
    assert golden.main(["--json", str(good), str(bad), str(unknown)]) == 1
    found = results(capsys)
    assert [(r["name"], r["kind"], r["passed"]) for r in found] == [
        ("good", "taehv", True),
        ("bad", "taehv", False),
        ("new", "sheep", False),
    ]
    assert found[0]["rel"] < 1e-5 < found[1]["rel"]
    assert found[2]["rel"] is None
    assert golden.main(["--json", str(good)]) == 0
    assert len(results(capsys)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_whole_run_agrees_with_the_originals(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Through `LipSyncEngine.dub`, from frames and sound to pasted frames."""
    path = Path(__file__).parents[2] / "shared" / "golden_pipeline" / "pipeline_w7.safetensors"
    if not path.is_file():
        pytest.skip(f"NO WHOLE RUN COMPARED: {path} is missing")
    assert golden.main([str(path), "--backend", backend]) == 0
    assert " pipeline rel=" in capsys.readouterr().out
