"""Bundles to build from. Without a rig these tests are skipped with a message; in CI that is a failure."""

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


class Precisions(dict[str, Bundle]):
    """The shipped bundle in "bf16", in "fp8", and in fp8 with its attention, each exported when it is first asked for:
    it takes minutes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, name: str) -> Bundle:
        from lipstream_export.command import export
        from lipstream_export.settings import Calibration

        calibration = Calibration(chunks=1, attention=name == "fp8-attention")
        export(Path("tiny"), self._folder / name, precision=name[:4].strip("-"), calibration=calibration)
        self[name] = Bundle.load(self._folder / name)
        return self[name]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Precisions:
    return Precisions(tmp_path_factory.mktemp("tiny"))
