"""The benchmarks are scripts of the repository, not an installed package: make them importable from anywhere."""

from __future__ import annotations

import sys
import wave
from dataclasses import replace
from pathlib import Path

import pytest
from lipstream import samples

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle at toy sizes, random weights: crops of 32 x 32."""
    from lipstream_export.bundle import export_bundle
    from toys import CONFIG, toy_parts

    path = tmp_path_factory.mktemp("benchmarks") / "toy"
    export_bundle(toy_parts(replace(CONFIG, latent_size=(4, 4))), path)
    return path


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """1.2 seconds of the shipped speech: 30 frames."""
    with wave.open(str(samples.SPEECH)) as whole, wave.open(str(tmp_path / "speech.wav"), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(whole.getframerate() * 6 // 5))
    return tmp_path / "speech.wav"
