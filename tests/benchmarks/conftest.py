"""The benchmarks are scripts of the repository, not an installed package: make them importable from anywhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

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
