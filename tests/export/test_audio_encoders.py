"""The audio encoders on mel spectra: exported, stored in bundles and checkpoints, and told apart there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from lipstream.bundle import Bundle
from lipstream.errors import CheckpointError
from lipstream_export.bundle import export_bundle
from lipstream_models import SpeechEncoder, SpeechPerceptron
from lipstream_models.parts import DESCRIPTION, StudentParts
from toys import CONFIG, toy_parts

KINDS = [SpeechEncoder, SpeechPerceptron]


def with_encoder(kind: type[SpeechEncoder | SpeechPerceptron]) -> StudentParts:
    torch.manual_seed(1)
    parts = toy_parts()
    parts.speech = kind().eval().requires_grad_(False)
    return parts


def window(encoder: SpeechEncoder | SpeechPerceptron, frames: int = 12) -> np.ndarray:
    """Noise that swells from silence, so that all ranges of the logarithm are used."""
    length = encoder.lookback + frames * 640 + encoder.lookahead
    noise = np.random.default_rng(0).standard_normal(length)
    return (0.2 * noise * np.linspace(0, 1, length) ** 3).astype(np.float32)


def graph_of(bundle: Bundle, samples: np.ndarray) -> np.ndarray:
    """Features by the bundle's own graph."""
    session = onnxruntime.InferenceSession(str(bundle.path / "audio_encoder.onnx"))
    (features,) = session.run(None, {"samples": samples})
    return np.asarray(features)


@pytest.mark.parametrize("kind", KINDS)
def test_graph_and_module_agree_and_a_bundle_gives_the_module_back(
    kind: type[SpeechEncoder | SpeechPerceptron], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    parts = StudentParts(CONFIG, speech=kind().eval().requires_grad_(False))
    assert isinstance(parts.speech, kind)
    bundle = export_bundle(parts, tmp_path / "bundle")
    assert (bundle.manifest.audio.lookback, bundle.manifest.audio.lookahead) == (kind.lookback, kind.lookahead)
    samples = window(parts.speech)
    wanted = parts.speech(torch.from_numpy(samples)).numpy()
    assert wanted.shape == (12, 64)
    assert np.abs(graph_of(bundle, samples) - wanted).max() < 1e-4
    again = StudentParts.from_bundle(bundle).speech
    assert isinstance(again, kind)
    np.testing.assert_array_equal(again(torch.from_numpy(samples)).detach().numpy(), wanted)


def test_the_shipped_bundle_loads_with_its_own_encoder() -> None:
    bundle = Bundle.load("tiny")
    encoder = StudentParts.from_bundle(bundle).speech
    assert isinstance(encoder, SpeechEncoder | SpeechPerceptron)
    samples = window(encoder)
    with torch.inference_mode():
        found = encoder(torch.from_numpy(samples)).numpy()
    assert np.abs(found - graph_of(bundle, samples)).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_names_its_encoder(kind: type[SpeechEncoder | SpeechPerceptron], tmp_path: Path) -> None:
    parts = with_encoder(kind)
    parts.save(tmp_path)
    found = StudentParts.from_checkpoint(tmp_path).speech
    assert isinstance(found, kind)
    assert all(torch.equal(x, y) for x, y in zip(found.parameters(), parts.speech.parameters(), strict=True))


def test_checkpoints_that_name_no_encoder_hold_the_perceptron(tmp_path: Path) -> None:
    with_encoder(SpeechPerceptron).save(tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    del description["speech"]
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    assert isinstance(StudentParts.from_checkpoint(tmp_path).speech, SpeechPerceptron)


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with_encoder(SpeechEncoder).save(tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(description | {"speech": "ear"}))
    with pytest.raises(CheckpointError, match="no audio encoder is called ear"):
        StudentParts.from_checkpoint(tmp_path)
