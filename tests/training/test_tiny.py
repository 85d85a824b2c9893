"""The stages of the tiny student, from the shipped one on, with the smallest sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lipstream.errors import ConfigError, OutputError
from lipstream_export.source import load_source
from lipstream_models.parts import StudentParts
from lipstream_training.cli import main
from lipstream_training.codec import DecoderRecipe
from lipstream_training.data.speech import synthesiser_available
from lipstream_training.diffusion import StudentRecipe
from lipstream_training.tiny import TinyRecipe, train_tiny
from toys import toy_parts

needs_voice = pytest.mark.skipif(
    not synthesiser_available(),
    reason='NO TRAINING OF TINY TESTED: espeakng-loader is missing; pip install "lipstream[training]"',
)

SMALL = TinyRecipe(
    clips=2,
    first=7,
    drawn=1.0,
    latent_frames=3,
    rollouts=2,
    student=StudentRecipe(steps=2, batch=2, learning_rate=1e-5, pictures=2, sharp=0.25, sharp_from=0.5),
    decoder=DecoderRecipe(steps=2, batch=2, frames=2, sharp_from=0.5),
)


@needs_voice
def test_the_shipped_student_is_trained_on(tmp_path: Path) -> None:
    start = load_source(Path("tiny"))
    train_tiny(tmp_path, SMALL, start)
    found = StudentParts.from_checkpoint(tmp_path / "checkpoint")
    old, new = start.weights(), found.weights()
    assert old.keys() == new.keys()
    changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"student", "taehv"}
    assert not any(not torch.equal(old[name], new[name]) for name in old if name.startswith("taehv.encoder"))
    for name, x in start.constants().items():
        assert (found.constants()[name] - x).abs().max() < 0.01, name  # two small steps away
    done = (tmp_path / "checkpoint" / "student.safetensors").read_bytes()
    train_tiny(tmp_path, SMALL, start)
    assert (tmp_path / "checkpoint" / "student.safetensors").read_bytes() == done


def test_a_student_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another shape"):
        train_tiny(tmp_path / "out", SMALL, replace(toy_parts(), model={"name": "toy"}))
    assert not (tmp_path / "out").exists()


def test_a_bundle_becomes_a_checkpoint_and_a_bundle_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its streams compute what they did."""
    checkpoint = tmp_path / "checkpoint"
    assert main(["import", "tiny", "-o", str(checkpoint)]) == 0
    found, wanted = StudentParts.from_checkpoint(checkpoint), load_source(Path("tiny"))
    for name, x in wanted.weights().items():
        assert torch.equal(found.weights()[name], x), name
    for name, x in wanted.constants().items():
        torch.testing.assert_close(found.constants()[name], x, rtol=0, atol=1e-5)
    assert main(["import", "tiny", "-o", str(checkpoint)]) == OutputError.exit_code
    assert "exists" in capsys.readouterr().err


def test_a_student_with_another_codec_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipstream_export.source.load_source", lambda path: replace(toy_parts(), taehv=None))
    assert main(["import", "tiny", "-o", str(tmp_path / "out")]) == ConfigError.exit_code
    assert not (tmp_path / "out").exists()
