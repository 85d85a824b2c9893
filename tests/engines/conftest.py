"""Bundles to build from. Where there is no rig these tests are skipped, and say so; in CI that is a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lipstream.bundle import Bundle
from rig import SHARED, rig


@pytest.fixture(scope="session")
def needs_rig() -> None:
    if rig() is None:
        if os.environ.get("CI") and SHARED.is_dir():
            pytest.fail(f"{SHARED} holds no TensorRT to build with")
        pytest.skip("no TensorRT to build with: set LIPSTREAM_TRT_RIG")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The shipped bundle in bf16, in fp8, and in fp8 with its attention."""
    from lipstream_export.command import Calibration, export

    folder: Path = tmp_path_factory.mktemp("tiny")
    for name in ("bf16", "fp8", "fp8-attention"):
        calibration = Calibration(chunks=1, attention=name == "fp8-attention")
        export(Path("tiny"), folder / name, precision=name[:4].strip("-"), calibration=calibration)
    return {path.name: Bundle.load(path) for path in sorted(folder.iterdir()) if path.is_dir()}
